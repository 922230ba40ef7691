"""Who is told what of a workflow, as its file says it. Light."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.config import Config

VARIABLE = "PATCHLINE_WEBHOOK"
"""Environment variable with the webhook's address."""

Kind = Literal["failure", "stall", "rollback", "end"]
KINDS: tuple[Kind, ...] = ("failure", "stall", "rollback", "end")


class NotifyConfig(Config):
    """What a webhook is told of, and where its address is."""

    tell: tuple[Kind, ...] = Field(default=KINDS, description="what is told: failure, stall, rollback, end")
    address_from: str = Field(
        default=VARIABLE, description="environment variable with the webhook's address, on the drivers' machines"
    )
