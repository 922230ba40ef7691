"""How a stage names another one: `pretrain`, or `${pretrain.checkpoint}` in the words of other programs."""

from __future__ import annotations

import re
from typing import Any

from cluster.errors import UserError
from pipeline.identity import role, wanted_outputs
from stages.config import StageConfig

SPELLED_OUT = re.compile(r"\$\{([A-Za-z][A-Za-z0-9_-]*)(?:\.(\w+))?\}")
SAME = {"model": ("model", "checkpoint", "output"), "dataset": ("dataset", "manifest", "output")}
"""What may be asked of a stage, by the kind of what it makes: all of it is its output."""


def plain_references(config: type[StageConfig], body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a stage with every `${stage.output}` as the stage's name alone. Raises UserError.

    The message of an error begins with the field.
    """
    plain = dict(body)
    for name, info in config.model_fields.items():
        key = info.alias if info.alias in body else name
        if role(config, name) == "reference" and key in body:
            made, value = wanted_outputs(config, name), body[key]
            plain[key] = (
                [_plain(key, made, one) for one in value] if isinstance(value, list) else _plain(key, made, value)
            )
    return plain


def _plain(key: str, made: tuple[str, ...], value: Any) -> Any:
    found = SPELLED_OUT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    name, part = found[1], found[2]
    known = tuple(dict.fromkeys(part for one in made for part in SAME.get(one, (one, "output"))))
    if part is not None and part not in known:
        raise UserError(f"{key}: got '{value}', expected '{name}', or ${{{name}.{known[0]}}}")
    return name
