"""Repeats: one stage in a workflow file that stands for several of other seeds, and for the summary of them.

    pretrain:
      ...
      seeds: [0, 1, 2]

becomes the stages `pretrain-seed-0`, `pretrain-seed-1`, `pretrain-seed-2`, and `pretrain`, which is the table of their
mean figures with standard errors. Another stage with these seeds that refers to `pretrain` reads, for each seed, the
model of that seed. Beside `sweep`, each of the sweep's stages is repeated, and the table has a row for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.errors import UserError
from pipeline.identity import role
from pipeline.kinds import config_of
from pipeline.spelling import plain_references
from stages.config import StageConfig
from stages.summary.config import SummaryConfig

Bodies = dict[str, dict[str, Any]]
Repeated = dict[str, dict[int, str]]
"""The stages, by seed, that one with `seeds` stands for, by its name."""


def repeat(expanded: Mapping[str, Bodies]) -> dict[str, Bodies]:
    """What each stage of a file stands for, from what it stands for without `seeds`. Raises UserError."""
    members: Repeated = {}
    found = {name: _with_seeds(name, bodies, members) for name, bodies in expanded.items()}
    tables = {name: bodies[name] for name, bodies in found.items() if _is_summary(name, bodies.get(name))}
    for bodies in found.values():
        for own, body in bodies.items():
            if isinstance(body, dict):
                bodies[own] = _referring(own, body, members, tables)
    return found


def _with_seeds(name: str, bodies: Bodies, members: Repeated) -> Bodies:
    """The stages that those of one name of the file stand for; `members` is told of them."""
    if not any("seeds" in body for body in bodies.values() if isinstance(body, dict)):
        return bodies
    found: Bodies = {}
    groups: list[str] = []
    for variant, body in bodies.items():
        if "seeds" not in body:
            # The choice among a sweep's: the summary takes its place.
            if set(body) > {"kind", "from"}:
                raise UserError(f"stages.{name}.choose: with seeds there are means to read and no model: take one away")
            continue
        own = {key: value for key, value in body.items() if key != "seeds"}
        own.setdefault("kind", name)
        _check_kind(name, own["kind"])
        for seed in _seeds(name, body):
            member = f"{variant}-seed-{seed}"
            members.setdefault(variant, {})[seed] = member
            found[member] = {**own, "seed": seed}
            groups.append(variant)
    return {**found, name: {"kind": SummaryConfig.kind, "from": list(found), "groups": groups}}


def _check_kind(name: str, kind: Any) -> None:
    """Raises UserError for a stage that makes no model, whose figures no summary knows."""
    try:
        made = config_of(kind).output
    except (UserError, TypeError, AttributeError):
        return
    if made != "model":
        raise UserError(f"stages.{name}.seeds: they are for stages that make a model, and this one makes none")


def _seeds(name: str, body: Mapping[str, Any]) -> list[int]:
    key, seeds = f"stages.{name}.seeds", body["seeds"]
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{key}: got {seeds!r}, expected different whole numbers from 0 on, such as [0, 1, 2]")
    if "seed" in body:
        raise UserError(f"{key}: give one of seed and seeds")
    return seeds


def _referring(name: str, body: dict[str, Any], members: Repeated, tables: Bodies) -> dict[str, Any]:
    """A stage's body, whose references to repeated stages are to those of its own seed, or in a summary to all."""
    try:
        config = config_of(body.get("kind", name))
        plain = plain_references(config, body)
    except (UserError, TypeError, AttributeError):
        # It is refused, or kept as it is, where the stage is made.
        return body
    if config is SummaryConfig:
        return _summary(plain, tables, (name,))
    for key in _reference_keys(config, plain):
        value = plain[key]
        own = [_member(name, key, one, plain.get("seed"), members) for one in _listed(value)]
        plain[key] = own if isinstance(value, list) else own[0]
    return plain


def _is_summary(name: str, body: Any) -> bool:
    return isinstance(body, dict) and body.get("kind", name) == SummaryConfig.kind


def _summary(body: dict[str, Any], tables: Bodies, outer: tuple[str, ...]) -> dict[str, Any]:
    """A summary of summaries is one of all their models; `outer` are those that this one is within."""
    if "groups" in body or not isinstance(body.get("from"), list):
        return body
    models: list[Any] = []
    groups: list[Any] = []
    for one in body["from"]:
        table = tables.get(one) if isinstance(one, str) and one not in outer else None
        inner = _summary(table, tables, (*outer, one)) if table is not None else {"from": [one], "groups": [one]}
        models += inner["from"]
        groups += inner.get("groups", inner["from"])
    return {**body, "from": models, "groups": groups}


def _reference_keys(config: type[StageConfig], body: Mapping[str, Any]) -> Iterator[str]:
    for field, info in config.model_fields.items():
        for key in {field, info.alias or field}:
            if role(config, field) == "reference" and body.get(key):
                yield key


def _member(name: str, key: str, target: Any, seed: Any, members: Repeated) -> Any:
    if not isinstance(target, str) or target not in members:
        return target
    known = members[target]
    if seed not in known:
        raise UserError(
            f"stages.{name}.{key}: '{target}' is repeated with seeds={list(known)}: give this stage the same seeds, or "
            f"name one of {', '.join(known.values())}"
        )
    return known[seed]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
