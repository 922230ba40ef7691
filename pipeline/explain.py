"""pydantic's errors in this program's words: the path, the value, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, Tag, ValidationError


def explain(source: str, key: str, model: type[BaseModel], error: ValidationError) -> str:
    """One line per problem: the path, the value, what was expected."""
    lines = []
    problem: Any
    for problem in error.errors():
        path, fields = _path(model, problem["loc"])
        place = ".".join([key, *map(str, path)]).strip(".")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{source}: {place}: unknown field{_suggestion(fields, path[-1])}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: {place}: this field is required")
        elif problem["type"] == "union_tag_not_found":
            lines.append(f"{source}: {place}.{_tag(problem)}: this field is required")
        elif problem["type"] == "union_tag_invalid":
            found, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "")
            lines.append(f"{source}: {place}.{_tag(problem)}: got {found!r}, expected one of {known}")
        elif problem["type"] in ("model_type", "model_attributes_type"):
            lines.append(f"{source}: {place}: got {_shown(problem['input'])}, expected a mapping of fields")
        elif problem["type"] == "value_error":
            lines.append(f"{source}: {place}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            message = problem["msg"].replace("Input should be", "expected").partition(", unable to parse")[0]
            lines.append(f"{source}: {place}: got {_shown(problem['input'])}, {message}")
    return "\n".join(lines)


def _tag(problem: Any) -> str:
    """Name of the field that says which of several models is meant."""
    return problem["ctx"]["discriminator"].strip("'")


Fields = Mapping[str, Any]


def _path(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[int | str], Fields]:
    """Where a problem is, in words of the file, and the fields that are known there, none where that is not known.

    pydantic's own location also says which of several models it took a value for: that is left out.
    """
    path: list[int | str] = []
    fields: Fields = model.model_fields
    known, tagged = fields, dict[str, Fields]()
    for part in location:
        if part in tagged:
            fields, tagged = tagged[str(part)], {}
            continue
        path.append(part)
        known = fields
        named = {info.alias or name: info for name, info in fields.items()}
        annotation = named[str(part)].annotation if part in named else None
        fields, tagged = _fields(annotation), _tagged(annotation)
    return path, known


def _fields(annotation: Any) -> Fields:
    """Those of a model, or of the only one of several types that is one."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    models = [kind for kind in kinds if issubclass(kind, BaseModel)]
    return models[0].model_fields if len(models) == 1 else {}


def _tagged(annotation: Any) -> dict[str, Fields]:
    """The fields of each of several models that a value may be of, by the tags that tell them apart."""
    found: dict[str, Fields] = {}
    for choice in get_args(annotation):
        kind, *marks = get_args(choice) or (choice,)
        found |= {mark.tag: _fields(kind) for mark in marks if isinstance(mark, Tag)}
    return found


def _suggestion(fields: Fields, unknown: int | str) -> str:
    """The nearest field name, where the unknown one looks like a slip of the keyboard."""
    names = [info.alias or name for name, info in fields.items()]
    near = difflib.get_close_matches(str(unknown), names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known fields: {', '.join(names)}" if names else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
