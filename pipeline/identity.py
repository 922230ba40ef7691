"""What determines a stage's result, in one canonical form, and its fingerprint.

Identity is the recipe and its inputs, never the place: workers, micro-batch, ZeRO stage and caches are
left out, so that a stage that ran on other hardware is still the same stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from cluster.errors import UserError
from pipeline.opaque import OpaqueConfig
from stages.config import StageConfig
from stages.context import canonical_json, sha256

LENGTH = 20
"""Characters of the fingerprint that name a stage's folder."""


def role(model: type[BaseModel], field: str) -> str:
    """`identity`, `placement` or `reference`."""
    extra = model.model_fields[field].json_schema_extra
    return str(extra["role"]) if isinstance(extra, dict) and "role" in extra else "identity"


def _added(model: type[BaseModel], field: str) -> bool:
    extra = model.model_fields[field].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("added"))


def without_meaning(config: BaseModel) -> set[str]:
    """The fields of a config that say nothing as its others are: see `only_with`, `only_beside` in `stages.config`."""
    return {field for field in type(config).model_fields if not _means_something(config, field)}


def _means_something(config: BaseModel, field: str) -> bool:
    extra = type(config).model_fields[field].json_schema_extra
    if not isinstance(extra, dict):
        return True
    if (beside := extra.get("only_beside")) and not getattr(config, str(beside)):
        return False
    needed = extra.get("only_with")
    for other, values in needed.items() if isinstance(needed, dict) else ():
        value = getattr(config, other)
        found = set(value if isinstance(value, tuple) else (value,))
        if not (isinstance(values, list) and found & set(map(str, values))):
            return False
    return True


def rounding_fields(model: type[BaseModel]) -> list[str]:
    """The placement fields on which the last bits of a result depend."""
    extras = {field: info.json_schema_extra for field, info in model.model_fields.items()}
    return [field for field, extra in extras.items() if isinstance(extra, dict) and extra.get("rounding")]


def wanted_outputs(model: type[BaseModel], field: str) -> tuple[str, ...]:
    """The kinds of outputs that a reference field may name a stage of."""
    extra = model.model_fields[field].json_schema_extra
    found = extra["output"] if isinstance(extra, dict) else ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def reference_keys(model: type[BaseModel], body: Mapping[str, Any]) -> Iterator[str]:
    """Of the fields that a workflow file has of a stage, those that refer to other stages, as they are called there."""
    for field, info in model.model_fields.items():
        for key in {field, info.alias or field}:
            if role(model, field) == "reference" and body.get(key):
                yield key


def references(config: StageConfig) -> dict[str, str]:
    """The stages that a config refers to, by field; by `field.0`, `field.1`, … where a field names several."""
    if isinstance(config, OpaqueConfig):
        return config.references
    found: dict[str, str] = {}
    for field in type(config).model_fields:
        value = getattr(config, field)
        if role(type(config), field) != "reference" or not value:
            continue
        found |= {field: value} if isinstance(value, str) else {f"{field}.{i}": name for i, name in enumerate(value)}
    return found


def fields_with_role(config: BaseModel, wanted: str) -> dict[str, Any]:
    """The fields of one role, nested models included, as plain JSON values. Raises TypeError, UserError."""
    found: dict[str, Any] = {}
    for field in type(config).model_fields:
        value, own = getattr(config, field), role(type(config), field)
        if _added(type(config), field) and value == type(config).model_fields[field].default:
            continue
        if own == "identity" and isinstance(value, BaseModel):
            nested = fields_with_role(value, wanted)
            if nested or wanted == "identity":
                found[field] = nested
        elif own == wanted:
            found[field] = _plain(value, field)
    return found


def identity(config: StageConfig, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The identity of a stage whose inputs have these fingerprints (by field)."""
    fields = fields_with_role(config, "identity")
    return {
        "kind": config.kind,
        "version": config.version,
        "config": {name: value for name, value in fields.items() if name not in config.without_effect()},
        "external": config.external_digest(),
        "inputs": determining(config, inputs),
    }


def determining(config: StageConfig, by_field: Mapping[str, str]) -> dict[str, str]:
    """Of what is known of a stage's inputs by field, that of those on which its result depends."""
    aside = config.without_effect()
    return {field: value for field, value in by_field.items() if field.partition(".")[0] not in aside}


def fingerprint(document: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of an identity."""
    return sha256(canonical_json(document))


def stage_folder(kind: str, print_: str) -> str:
    """Key prefix of the folder of a stage."""
    return f"stages/{kind}/{print_[:LENGTH]}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Field by field, what changed from one identity to another: `config.lr: 0.001 → 0.003`."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        name = f"{path}.{key}" if path else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, name)
        elif before != after:
            lines.append(f"{name.removeprefix('config.')}: {_short(before)} → {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _plain(value: Any, field: str) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name), f"{field}.{name}") for name in type(value).model_fields}
    if isinstance(value, list | tuple):
        return [_plain(item, field) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{field}={value} has no stable form: expected a finite number")
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{field}={value!r} of type {type(value).__name__} has no stable form")
