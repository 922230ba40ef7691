"""One stage in a workflow file that stands for one for each of the stages that another one stands for.

    pretrain:
      ...
      sweep: {model: {small: {...}, large: {...}}}
      choose: none
    fewshot: {data: ingest, from: pretrain, for_each: pretrain}

becomes `fewshot-model-small` and `fewshot-model-large`, each of which refers to the `pretrain` of its own. No stage is
called `fewshot` then; where several stages can be named, `fewshot` names all of them. Each may have a `sweep` or
`seeds` of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import UserError
from pipeline.branch import branched
from pipeline.identity import reference_keys
from pipeline.kinds import config_of
from pipeline.repeats import members_of
from pipeline.spelling import plain_references
from pipeline.sweep import expand

Stages = dict[str, Any]
"""Bodies of stages by name."""
Groups = dict[str, list[str]]
"""The stages that a name of the file stands for which is no stage itself."""


def spread(bodies: Mapping[str, Any]) -> tuple[Stages, Groups]:
    """The stages of a file, with those that each one with `for_each` stands for in its place. Raises UserError."""
    groups: Groups = {}
    found: dict[str, Stages] = {}
    for name in bodies:
        _spread(name, bodies, groups, found, ())
    together: Stages = {}
    for name in bodies:
        for own, body in found[name].items():
            if own in together or (own != name and own in bodies):
                raise UserError(f"stages.{name}.for_each: there is another stage called '{own}'")
            together[own] = body
    return together, groups


def _spread(
    name: str, bodies: Mapping[str, Any], groups: Groups, found: dict[str, Stages], outer: tuple[str, ...]
) -> None:
    if name in found:
        return
    body = bodies[name]
    if not isinstance(body, dict) or "for_each" not in body:
        found[name] = {name: body}
        return
    key, source = f"stages.{name}.for_each", body["for_each"]
    if not isinstance(source, str) or source not in bodies:
        raise UserError(f"{key}: got {source!r}, expected one of the stages: {', '.join(map(str, bodies))}")
    if source in (name, *outer):
        raise UserError(f"{key}: got '{source}', which is made for each of this one: a circle")
    _spread(source, bodies, groups, found, (*outer, name))
    members = _members(key, source, found[source] if source in groups else {source: branched(source, bodies)})
    own = {field: value for field, value in body.items() if field != "for_each"}
    own.setdefault("kind", name)
    found[name] = {
        f"{name}{member[len(source) :]}": _for_one(key, own, source, member, seed) for member, seed in members.items()
    }
    groups[name] = list(found[name])


def _members(key: str, source: str, stages: Stages) -> dict[str, int | None]:
    """The stages that one of the file stands for, with the seeds of those that are repeated; None for the others.

    Of stages that are made for each of others themselves, the choice among a sweep stands for it.
    """
    if source in stages and not _stands_for_several(stages[source]):
        raise UserError(f"{key}: '{source}' is one stage: give it a sweep or seeds, or take for_each away")
    members: dict[str, int | None] = {}
    for own, body in stages.items():
        expanded = expand(own, body) if _stands_for_several(body) else {own: body}
        one = own != source and own in expanded and "seeds" not in body
        several = {own: body} if one else members_of(own, expanded)
        members |= {name: found.get("seed") if "seeds" in body else None for name, found in several.items()}
    return members


def _stands_for_several(body: Any) -> bool:
    return isinstance(body, dict) and ("sweep" in body or "seeds" in body)


def _for_one(key: str, body: Mapping[str, Any], source: str, member: str, seed: int | None) -> dict[str, Any]:
    """A stage's body, with `member` in the place of `source` wherever it refers to that, and with its seed."""
    try:
        config = config_of(body["kind"])
        plain = plain_references(config, dict(body))
    except (UserError, TypeError, AttributeError):
        # It is refused, with its own message, where the stage is made.
        return dict(body)
    fields = [field for field in reference_keys(config, plain) if source in _listed(plain[field])]
    if not fields:
        raise UserError(f"{key}: no field of this stage refers to '{source}': name it there, or take for_each away")
    for field in fields:
        value = plain[field]
        plain[field] = [member if one == source else one for one in value] if isinstance(value, list) else member
    if seed is not None and "seeds" in plain:
        raise UserError(f"{key}: '{source}' has seeds, which this stage takes over: take its own seeds away")
    return plain if seed is None else {"seed": seed, **plain}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
