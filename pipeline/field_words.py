"""What a config's field may be, and what it is if nobody says, in words: from its JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
SHOWN = 4
"""Values of a long default that are shown."""


def type_words(schema: dict[str, Any]) -> str:
    """The type of a JSON schema, with its choices and limits, in Markdown."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(map(type_words, schema[several])))
    return _plain(schema)


def _plain(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "anything")
    if kind == "array" and "prefixItems" in schema:
        return f"[{'; '.join(map(type_words, schema['prefixItems']))}]"
    if kind == "array":
        least = ", not empty" if schema.get("minItems") else ""
        return f"list of {type_words(schema['items'])}{least}"
    if kind == "object":
        keys = schema.get("propertyNames", {})
        of = f" of {type_words(keys)}" if keys else ""
        return f"mapping{of} to {type_words(schema.get('additionalProperties', {}))}"
    limits = [f"{sign} {_number(schema[key])}" for key, sign in LIMITS.items() if key in schema]
    return " ".join([kind, ", ".join(limits)]).strip()


def default_words(schema: dict[str, Any], field: FieldInfo) -> str:
    """A default as a workflow file would have it."""
    if field.is_required():
        # Not so in the schema of what may be given by its name too.
        return "required, or by name"
    if "default" not in schema:
        return "its own defaults"
    value = schema["default"]
    if value is None:
        return "none"
    if isinstance(value, list) and len(value) > 2 * SHOWN:
        return f"`[{', '.join(map(_number, value[:SHOWN]))}, …, {_number(value[-1])}]`"
    if isinstance(value, float):
        return f"`{_number(value)}`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def models_in(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The configs that a config's fields hold, with the fields' names."""
    for field, info in model.model_fields.items():
        for inner in _models(info.annotation):
            yield field, inner


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value != int(value) else f"{int(value)}"
