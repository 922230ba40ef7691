"""A stage of somebody's own whose class cannot be imported here, or has changed: it can be looked at, and not run."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, PrivateAttr

from cluster.errors import UserError
from stages.config import StageConfig


class OpaqueConfig(StageConfig):
    """The fields of a stored stage as they are written, what its kind is called, and why it cannot be run here.

    The name of its folders and the kind of its output are the class's, and so are not known. See `opaque`.
    """

    model_config = ConfigDict(extra="allow")
    kind: ClassVar[str] = "unknown"
    version: ClassVar[int] = 0
    output: ClassVar[str] = "unknown"

    _called: str = PrivateAttr("")
    _why: str = PrivateAttr("")
    _references: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def called(self) -> str:
        """What the workflow file calls its kind: `package.module:Class`."""
        return self._called

    @property
    def references(self) -> dict[str, str]:
        """The stages that it seems to refer to, by field: a field that merely has a stage's name is among them."""
        return self._references

    def external_digest(self) -> str | None:
        raise self.refusal()

    def refusal(self) -> UserError:
        """What is told whoever wants to run it here."""
        return UserError(self._why)


def looked_for() -> str:
    """What is added to the error of a class that cannot be imported."""
    place = f"{os.getcwd()} on {socket.gethostname()}"
    return f"(looked for from {place}): go to the folder that its module is in, or install it"


def opaque(called: str, body: Mapping[str, Any], stages: Collection[str], why: str) -> OpaqueConfig:
    """A stored stage of the kind that is `called` so, which cannot be run here: `why`.

    `body` are its fields, `stages` the names of its workflow's. Raises ValidationError for the fields that all have.
    """
    config = OpaqueConfig.model_validate(dict(body))
    config._called, config._why = called, why
    for field, value in (config.model_extra or {}).items():
        if isinstance(value, str) and value in stages:
            config._references[field] = value
        elif isinstance(value, list) and value and all(isinstance(item, str) and item in stages for item in value):
            config._references.update({f"{field}.{i}": item for i, item in enumerate(value)})
    return config
