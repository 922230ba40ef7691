"""What an update measured: on its way from the device, and arrived."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one update measured, over all ranks."""

    loss: float
    accuracy: float
    gradient_norm: float
    signals: int
    """How many ranks were given a signal: all ranks read the same answer at the same update."""
    replaced: int
    """Unreadable samples that this attempt has met so far."""
    parameter_norm: float | None
    skipped: bool
    """Whether fp16's loss scale was too large, so that the weights stayed as they were."""
    ranks: list[tuple[float, ...]] = field(default_factory=list)
    """What every rank said of itself, by rank; empty where nobody was asked."""


class Pending:
    """What an update measured, on its way from the device: asking for it waits, having it does not."""

    def __init__(
        self, totals: Tensor, norm: Tensor | float, *, ranks: int, with_norm: bool, skipped: bool, each: int = 0
    ) -> None:
        self._ranks, self._with_norm, self._skipped, self._each = ranks, with_norm, skipped, each
        packed = torch.cat([totals, torch.as_tensor(norm, dtype=totals.dtype, device=totals.device).reshape(1)])
        self._ready: torch.cuda.Event | None = None
        if packed.is_cuda:
            self._values = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._values.copy_(packed, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._values = packed

    def report(self) -> StepReport:
        """The figures. On a GPU this waits until the update has been computed."""
        if self._ready is not None:
            self._ready.synchronize()
        loss, accuracy, signals, replaced, squares, *own, norm = self._values.tolist()
        return StepReport(
            loss=loss / self._ranks,
            accuracy=accuracy / self._ranks,
            gradient_norm=norm,
            signals=round(signals),
            replaced=round(replaced),
            parameter_norm=math.sqrt(squares) if self._with_norm else None,
            skipped=self._skipped,
            ranks=[tuple(own[start : start + self._each]) for start in range(0, len(own), self._each or 1)],
        )
