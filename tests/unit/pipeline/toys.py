"""Small stages that run through the real runner."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from pydantic import Field

from cluster.errors import UserError
from stages.config import StageConfig, placement, reference
from stages.context import Context, Inputs, Result

CALLS: list[str] = []


class Source(StageConfig):
    kind: ClassVar[str] = "source"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "text"

    text: str = Field("hello", description="what to write")
    width: int = placement(1, "does not matter")

    @classmethod
    def function(cls) -> Any:
        return run_source


class Upper(StageConfig):
    kind: ClassVar[str] = "upper"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "text"

    text: str = reference("text", "what to read", alias="from")
    times: int = Field(1, description="repeats")
    failures: int = placement(0, "how many attempts a machine breaks")
    mistake: str = placement("", "an error that the user can mend")

    @classmethod
    def function(cls) -> Any:
        return run_upper


class Meeting(StageConfig):
    """Ends only while another one of its kind runs beside it."""

    kind: ClassVar[str] = "meeting"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "text"

    text: str = reference("text", "what to read", alias="from")
    name: str = Field(description="tells one from the other")
    mistake: str = placement("", "an error that the user can mend, once they have met")

    @classmethod
    def function(cls) -> Any:
        return run_meeting


TABLE = threading.Barrier(2, timeout=120)


def run_meeting(config: Meeting, inputs: Inputs, context: Context) -> Result:
    TABLE.wait()
    if config.mistake:
        raise UserError(config.mistake)
    return Result(output=context.commit("text", [context.write("text", config.name.encode())], {}))


def run_source(config: Source, inputs: Inputs, context: Context) -> Result:
    CALLS.append("source")
    entry = context.write("text", config.text.encode())
    return Result(output=context.commit("text", [entry], {}), metrics={"length": float(len(config.text))})


def run_upper(config: Upper, inputs: Inputs, context: Context) -> Result:
    CALLS.append("upper")
    if config.mistake:
        raise UserError(config.mistake)
    if context.attempt <= config.failures:
        raise ConnectionError(f"cable pulled in attempt {context.attempt}")
    text = context.storage.read(inputs["text"].key("text")).decode().upper() * config.times
    return Result(output=context.commit("text", [context.write("text", text.encode())], {}))
