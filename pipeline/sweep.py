"""Sweeps: one stage in a workflow file that stands for several, and for the choice among them.

    finetune:
      ...
      sweep: {lr: [0.003, 0.01, 0.03]}
      choose: {metric: validation/accuracy, mode: max}

becomes the stages `finetune-lr-0_003`, `finetune-lr-0_01`, `finetune-lr-0_03`, and `finetune`, which is the best of
them. Several fields are combined, each value with each. Values may have names, `{small: {...}, large: {...}}`, by which
the stages are called. With `choose: none` nothing is chosen: no stage is called `finetune`, and where several stages
can be named it names all of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from cluster.errors import UserError
from pipeline.yaml_file import with_fields

NOTHING = "none"
"""What `choose` is where a sweep's stages stand beside each other."""
MOST = 1000
"""Stages that one sweep may become."""


def expand(name: str, body: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages, by name, that a stage of the file stands for: itself alone where it has no `sweep`.

    Raises UserError.
    """
    if "sweep" not in body:
        if "choose" in body:
            raise UserError(f"stages.{name}.choose: there is no sweep to choose from: give sweep, or take it away")
        return {name: dict(body)}
    rest = {key: value for key, value in body.items() if key not in ("sweep", "choose")}
    rest.setdefault("kind", name)
    fields = _fields(name, body["sweep"])
    found: dict[str, dict[str, Any]] = {}
    for chosen in itertools.product(*fields.values()):
        parts = [_part(field, called) for field, (called, _) in zip(fields, chosen, strict=True)]
        variant, own = "-".join([name, *parts]), deepcopy(rest)
        if "" in (called for called, _ in chosen):
            raise UserError(f"stages.{name}.sweep: a value has an empty name: stages are called by it")
        if variant in found:
            raise UserError(f"stages.{name}.sweep: two of its stages would be called '{variant}': take one away")
        for path, (_, value) in zip(fields, chosen, strict=True):
            _set(name, own, path, deepcopy(value))
        found[variant] = own
    choose = {} if body.get("choose") is None else body["choose"]
    if choose == NOTHING:
        return found
    if not isinstance(choose, dict):
        raise UserError(
            f"stages.{name}.choose: got {choose!r}, expected a mapping such as {{metric: validation/loss, mode: min}}, "
            "or none"
        )
    return {**found, name: {"kind": "choice", "from": list(found), **choose}}


def _fields(name: str, sweep: Any) -> dict[str, list[tuple[Any, Any]]]:
    """Of each field, what its values are called and the values."""
    if not isinstance(sweep, dict) or not sweep:
        raise UserError(f"stages.{name}.sweep: got {sweep!r}, expected fields and their values: {{lr: [0.01, 0.03]}}")
    for field, values in sweep.items():
        if not isinstance(values, list | dict) or not values:
            raise UserError(f"stages.{name}.sweep.{field}: got {values!r}, expected a list of values, or names of them")
    count = 1
    for values in sweep.values():
        count *= len(values)
    if count > MOST:
        raise UserError(f"stages.{name}.sweep: {count:,} combinations are more than {MOST:,}: take values away")
    return {
        str(field): list(values.items()) if isinstance(values, dict) else [(value, value) for value in values]
        for field, values in sweep.items()
    }


def _part(field: str, value: Any) -> str:
    """What a field and its value are in a stage's name, which has letters, digits, - and _ alone."""
    return f"{field.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9-]+', '_', str(value)).strip('_')}"


def _set(name: str, body: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for part in outer:
        inner = with_fields(part, body.setdefault(part, {}))
        if inner is None:
            raise UserError(f"stages.{name}.sweep.{path}: '{part}' has no fields")
        body[part] = inner
        body = inner
    body[last] = value
