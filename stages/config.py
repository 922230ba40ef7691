"""What every stage's config has in common, and the three roles that a field can play.

A field is part of the *identity* (the default: it determines the result), *placement* (where and how
wide the stage runs; never part of the identity) or a *reference* (the name of another stage in the
same workflow whose output this stage reads). This module and the stages' own `config.py` import
neither torch nor ray, so that `plan` and `--help` answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

if TYPE_CHECKING:
    from cluster.storage import Storage
    from stages.context import Context, Inputs, Output, Result

    StageFunction = Callable[[Any, Inputs, Context], Result]


class Config(BaseModel):
    """A frozen, keyword-only model that refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, populate_by_name=True, allow_inf_nan=False
    )


def placement(default: Any, description: str, *, rounding: bool = False, **constraints: Any) -> Any:
    """A field that says where or how wide a stage runs. It never changes the stage's identity.

    `rounding` marks one that changes the order of sums: results are equal bit for bit where it is equal.
    """
    extra: JsonDict = {"role": "placement", "rounding": rounding}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def only_with(**needed: str | tuple[str, ...]) -> JsonDict:
    """Mark a field of the identity that says something only where other fields have one of these values.

    Elsewhere nobody need be shown it. It stays in the identity.
    """
    return {"only_with": {field: [one] if isinstance(one, str) else list(one) for field, one in needed.items()}}


def only_beside(field: str) -> JsonDict:
    """Mark a field of the identity that says something only where another one is given and not 0, likewise."""
    return {"only_beside": field}


def added(default: Any, description: str, *, marks: JsonDict | None = None, **constraints: Any) -> Any:
    """A field of the identity that came when there were stages without it: with its default it is left out.

    So they stay the stages that they are. `marks` are those of `only_with` and `only_beside`.
    """
    extra: JsonDict = {"added": True, **(marks or {})}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def reference(output: str | tuple[str, ...], description: str, default: Any = ..., alias: str | None = None) -> Any:
    """A field that names another stage of the workflow, or several, whose output is of the kind `output`, or of one.

    A stage finds the outputs in its inputs by the field's name; those of several as `field.0`, `field.1`, ….
    `alias` is the field's name in the workflow file, for names that Python keeps for itself (`from`).
    """
    extra: JsonDict = {"role": "reference", "output": [output] if isinstance(output, str) else list(output)}
    return Field(default, description=description, json_schema_extra=extra, alias=alias)


class StageConfig(Config):
    """Base of the stages' configs: `kind` and `version` enter the identity, `output` is what it makes."""

    kind: ClassVar[str]
    version: ClassVar[int]
    output: ClassVar[str]
    says_nothing: ClassVar[frozenset[str]] = frozenset()
    """Dotted names of fields that the stage never looks at, of a config that it shares with others. They stay in the
    identity, and nobody need be shown them."""

    seed: int | None = Field(None, ge=0, description="seed of all randomness; the workflow's where absent")
    retries: int = placement(3, "how often a stage is tried again after a machine's failure", ge=0)
    priority: int = placement(0, "of stages that wait for room, those of a higher priority go first")
    preemptions: int = placement(1000, "how often a stage goes on after its machines were taken away", ge=0)

    @classmethod
    def function(cls) -> StageFunction:
        """The stage's `run`, imported when it is needed."""
        raise TypeError(f"{cls.__name__} names no function")

    def external_digest(self) -> str | None:
        """Digest of what the stage reads from outside the workflow; it enters the identity."""
        return None

    def addresses(self) -> dict[str, str]:
        """Where the stage reads what is from outside the workflow, by field: addresses, and paths on its machines."""
        return {}

    @property
    def begins_at(self) -> tuple[str, int] | None:
        """The reference field whose stage's checkpoint this one begins with, and the update of it; None for none."""
        return None

    def without_effect(self) -> frozenset[str]:
        """Fields that change nothing as the others are: they stay out of the identity."""
        return frozenset()

    def is_in_place(self, storage: Storage, output: Output) -> bool:
        """Whether what a recorded output refers to is where this config wants it; its own files have been looked at."""
        return True
