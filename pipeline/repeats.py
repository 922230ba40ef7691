"""Repeats: one stage in a workflow file that stands for several of other seeds, and for the summary of them.

    pretrain:
      ...
      seeds: [0, 1, 2]

becomes the stages `pretrain-seed-0`, `pretrain-seed-1`, `pretrain-seed-2`, and `pretrain`, which is the table of their
mean figures with standard deviations. Another stage with these seeds that refers to `pretrain` reads, for each seed,
the model of that seed; one that can name several stages reads all of them. Beside `sweep`, each of the sweep's stages
is repeated, and the table has a row for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from cluster.errors import UserError
from pipeline.identity import reference_keys, wanted_outputs
from pipeline.kinds import config_of
from pipeline.spelling import plain_references
from stages.config import StageConfig
from stages.summary.config import SummaryConfig, group_of

Bodies = dict[str, dict[str, Any]]
Repeated = dict[str, dict[int, str]]
"""The stages, by seed, that one with `seeds` stands for, by its name."""


def repeat(expanded: Mapping[str, Bodies], groups: Mapping[str, list[str]]) -> dict[str, Bodies]:
    """What each stage of a file stands for, from what it stands for without `seeds`. Raises UserError.

    `groups` are names of the file that stand for several of its stages and are no stages themselves.
    """
    members: Repeated = {}
    found = {name: _with_seeds(name, bodies, members) for name, bodies in expanded.items()}
    tables = {name: bodies[name] for name, bodies in found.items() if _is_summary(name, bodies.get(name))}
    unnamed = {name: list(bodies) for name, bodies in found.items() if name not in bodies}
    several = Several(members=members, tables=tables, groups={**groups, **unnamed})
    for bodies in found.values():
        for own, body in bodies.items():
            if isinstance(body, dict):
                bodies[own] = _referring(own, body, several)
    return found


def members_of(name: str, bodies: Bodies) -> Bodies:
    """The stages that one of a sweep or of seeds stands for, without the choice among them or the table of them."""
    return {own: body for own, body in _with_seeds(name, bodies, {}).items() if own != name}


@dataclass(frozen=True, kw_only=True)
class Several:
    """What the names in a file stand for that are not one stage alone."""

    members: Repeated
    tables: Bodies
    """Summaries, by name."""
    groups: Mapping[str, list[str]]
    """Those that are no stages themselves."""

    def each(self, name: str) -> list[str]:
        """The stages that a name stands for where several can be named."""
        if name in self.groups:
            return [one for own in self.groups[name] for one in self.each(own)]
        return list(self.tables[name]["from"]) if name in self.tables else [name]


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
    """Raises UserError for a stage whose figures no summary knows."""
    try:
        made = config_of(kind).output
    except (UserError, TypeError, AttributeError):
        return
    if made not in wanted_outputs(SummaryConfig, "models"):
        raise UserError(
            f"stages.{name}.seeds: they are for stages that make a model or an evaluation, and this one makes neither"
        )


def _seeds(name: str, body: Mapping[str, Any]) -> list[int]:
    key, seeds = f"stages.{name}.seeds", body["seeds"]
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{key}: got {seeds!r}, expected different whole numbers from 0 on, such as [0, 1, 2]")
    if "seed" in body:
        raise UserError(f"{key}: give one of seed and seeds")
    return seeds


def _referring(name: str, body: dict[str, Any], several: Several) -> dict[str, Any]:
    """A stage's body, whose references to repeated stages are to those of its own seed, or where it can be to all."""
    try:
        config = config_of(body.get("kind", name))
        plain = plain_references(config, body)
    except (UserError, TypeError, AttributeError):
        # It is refused, or kept as it is, where the stage is made.
        return body
    if config is SummaryConfig:
        return _summary(plain, several, (name,))
    for key in reference_keys(config, plain):
        value = plain[key]
        if isinstance(value, list) or names_several(config, key):
            listed = value if isinstance(value, list) else [value]
            plain[key] = [own for one in listed for own in _members(name, key, one, plain.get("seed"), several)]
        else:
            plain[key] = _member(name, key, value, plain.get("seed"), several)
    return plain


def _is_summary(name: str, body: Any) -> bool:
    return isinstance(body, dict) and body.get("kind", name) == SummaryConfig.kind


def _summary(body: dict[str, Any], several: Several, outer: tuple[str, ...]) -> dict[str, Any]:
    """A summary of summaries is one of all their models; `outer` are those that this one is within."""
    sources = [body["from"]] if isinstance(body.get("from"), str) else body.get("from")
    if "groups" in body or not isinstance(sources, list):
        return body
    models: list[Any] = []
    groups: list[Any] = []
    for one in _without_groups(sources, several):
        table = several.tables.get(one) if isinstance(one, str) and one not in outer else None
        inner = _summary(table, several, (*outer, one)) if table is not None else _alone(one)
        models += inner["from"]
        groups += inner.get("groups", inner["from"])
    return {**body, "from": models, "groups": groups}


def _alone(one: Any) -> dict[str, Any]:
    return {"from": [one], "groups": [group_of(one) if isinstance(one, str) else one]}


def _without_groups(names: Iterable[Any], several: Several) -> Iterator[Any]:
    """The stages that names stand for, summaries among them."""
    for one in names:
        known = several.groups.get(one) if isinstance(one, str) else None
        yield from [one] if known is None else _without_groups(known, several)


def names_several(config: type[StageConfig], key: str) -> bool:
    """Whether a reference, as it is called in a file, can name several stages."""
    fields = config.model_fields.items()
    return any(get_origin(info.annotation) is tuple for field, info in fields if key in (field, info.alias))


def _members(name: str, key: str, target: Any, seed: Any, several: Several) -> list[Any]:
    """What a name means where several can be named: the one of the stage's own seed, or all."""
    if not isinstance(target, str) or seed in several.members.get(target, {}):
        return [_member(name, key, target, seed, several)]
    return several.each(target)


def _member(name: str, key: str, target: Any, seed: Any, several: Several) -> Any:
    if isinstance(target, str) and target in several.groups:
        known = ", ".join(several.each(target))
        raise UserError(f"stages.{name}.{key}: '{target}' stands for {known}: name one, or set for_each to '{target}'")
    if not isinstance(target, str) or target not in several.members:
        return target
    known = several.members[target]
    if seed not in known:
        raise UserError(
            f"stages.{name}.{key}: '{target}' is repeated with seeds={list(known)}: give this stage the same seeds, or "
            f"name one of {', '.join(known.values())}"
        )
    return known[seed]
