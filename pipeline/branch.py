"""Branches: a stage in a workflow file that goes on from a checkpoint of another one, and cools down.

    pretrain:
      ...
      decay: constant
      keep_every: 50000
    short:
      branch: {from: pretrain@200000, cooldown: 50000}

makes `short` a stage with all the fields of `pretrain`, but for those that it gives itself, that begins with what the
trunk's checkpoint of update 200,000 holds, its place in the data included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from cluster.errors import UserError

FIELDS = ("from", "cooldown")
POINT = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)@([0-9][0-9_]*)")


def branched(name: str, bodies: Mapping[Any, Any]) -> Any:
    """The body of a stage, with its trunk's fields where it is a branch. Raises UserError."""
    body = bodies[name]
    if not isinstance(body, dict) or "branch" not in body:
        return body
    key, branch = f"stages.{name}.branch", body["branch"]
    if not isinstance(branch, dict) or set(branch) != set(FIELDS):
        raise UserError(f"{key}: got {branch!r}, expected {{from: STAGE@UPDATE, cooldown: UPDATES}}")
    found = POINT.fullmatch(branch["from"]) if isinstance(branch["from"], str) else None
    if found is None:
        raise UserError(f"{key}.from: got {branch['from']!r}, expected a stage and an update, such as pretrain@200000")
    trunk = _trunk(key, found[1], bodies)
    own = {field: value for field, value in body.items() if field != "branch"}
    point = {"trunk": found[1], "branch_at": int(found[2]), "cooldown": branch["cooldown"]}
    return {"kind": trunk.get("kind", found[1]), **deepcopy(trunk), **own, **point}


def _trunk(key: str, name: str, bodies: Mapping[Any, Any]) -> dict[str, Any]:
    trunk = bodies.get(name)
    if not isinstance(trunk, dict):
        raise UserError(f"{key}.from: got '{name}', expected one of the stages: {', '.join(map(str, bodies))}")
    if "branch" in trunk or "sweep" in trunk:
        kind = "a branch itself" if "branch" in trunk else "a sweep"
        raise UserError(f"{key}.from: '{name}' is {kind}: branch off from a single trunk")
    # What a trunk begins with is in its checkpoint.
    return {field: value for field, value in trunk.items() if field != "init_from"}
