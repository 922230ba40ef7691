"""pydantic's errors in this program's words: the path, the value, what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(source: str, key: str, model: type[BaseModel], error: ValidationError) -> str:
    """One line per problem: the path, the value, what was expected."""
    lines = []
    problem: Any
    for problem in error.errors():
        place = ".".join([key, *(str(part) for part in problem["loc"])]).strip(".")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{source}: {place}: unknown field{_suggestion(model, problem['loc'])}")
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
            message = problem["msg"].replace("Input should be", "expected")
            lines.append(f"{source}: {place}: got {_shown(problem['input'])}, {message}")
    return "\n".join(lines)


def _tag(problem: Any) -> str:
    """Name of the field that says which of several models is meant."""
    return problem["ctx"]["discriminator"].strip("'")


def _suggestion(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The nearest field name, where the unknown one looks like a slip of the keyboard."""
    fields: Mapping[str, Any] = model.model_fields
    for part in location[:-1]:
        annotation = fields[part].annotation if part in fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        fields = annotation.model_fields
    names = [info.alias or name for name, info in fields.items()]
    near = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known fields: {', '.join(names)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
