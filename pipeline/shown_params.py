"""Which fields of a stage are parameters of its runs in MLflow: what runs are compared by, and no noise.

One rule, by the part that a field plays:

- what determines the result is shown, with its default too: runs are compared by it, and a column with gaps says less;
- what the last bits of the result depend on (workers, ZeRO stage, …) is shown of each attempt, likewise;
- everything else (retries, caches, intervals, …) is shown of each attempt where it is not the default: a stored
  workflow has every field, so what its file gave as it is by default cannot be told from what it did not give;
- a field without a value is not shown, nor one that says nothing as the others are (`momentum` beside Adam), or to this
  stage (random crops where nobody trains).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pipeline.identity import role, rounding_fields, without_meaning
from stages.config import StageConfig

EMPTY: tuple[Any, ...] = (None, "", [], {})


def of_stage(config: StageConfig, seed: int) -> dict[str, Any]:
    """What determines a stage's result, by dotted names. `seed` is its own or the workflow's."""
    aside = config.without_effect()
    found = {
        name: getattr(owner, field)
        for name, owner, field in _leaves(config)
        if role(type(owner), field) == "identity"
        and field not in without_meaning(owner)
        and name.partition(".")[0] not in aside
        and not any(_within(name, one) for one in config.says_nothing)
    }
    return _flat({**found, "seed": seed})


def of_attempt(config: StageConfig, placement: Mapping[str, Any]) -> dict[str, Any]:
    """Where and how an attempt runs, by dotted names: of its placement, which may differ from the config's."""
    shown = {name for name, owner, field in _leaves(config) if _matters(owner, field)}
    # A field of the placement may itself be a mapping, or a model.
    return {name: value for name, value in _flat(placement).items() if any(_within(name, one) for one in shown)}


def _matters(owner: BaseModel, field: str) -> bool:
    """Whether a placement field is shown."""
    if role(type(owner), field) != "placement":
        return False
    info = type(owner).model_fields[field]
    given = info.is_required() or getattr(owner, field) != info.get_default(call_default_factory=True)
    return given or field in rounding_fields(type(owner))


def _leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, BaseModel, str]]:
    """The fields of a config and of the models in it: the dotted name, the model that has it, its name there."""
    for field in type(model).model_fields:
        value = getattr(model, field)
        if isinstance(value, BaseModel) and role(type(model), field) == "identity":
            yield from _leaves(value, f"{prefix}{field}.")
        else:
            yield f"{prefix}{field}", model, field


def _within(name: str, field: str) -> bool:
    return name == field or name.startswith(f"{field}.")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Mappings opened, as plain JSON values, without those that are empty."""
    flat: dict[str, Any] = {}
    for key, value in to_jsonable_python(values).items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        elif value not in EMPTY:
            flat[name] = value
    return flat
