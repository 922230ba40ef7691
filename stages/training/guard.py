"""Looks at every update's loss and gradients, and says when training has to go back.

What it remembers is part of a checkpoint, so that a resumed run decides as an undisturbed one does.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from stages.training.config import GuardConfig
from stages.training.report import StepReport


class Guard:
    """The recent losses, against which the next one is held."""

    def __init__(self, config: GuardConfig, recent: Iterable[float] = ()) -> None:
        self._config = config
        self._recent = deque(recent, maxlen=config.recent)

    @property
    def recent(self) -> list[float]:
        """The losses that a checkpoint keeps, oldest first; none where no spikes are looked for."""
        return list(self._recent) if self._config.spike else []

    def trouble(self, report: StepReport) -> str | None:
        """What is wrong with an update, or None: then its loss is one of the recent ones from now on."""
        if not math.isfinite(report.loss):
            return f"the loss is {report.loss}"
        # Gradients that overflow fp16 left the weights as they were, and the loss scale is lowered.
        if not math.isfinite(report.gradient_norm) and not report.skipped:
            return f"the gradients' norm is {report.gradient_norm}"
        if self._config.spike and len(self._recent) == self._config.recent:
            median = statistics.median(self._recent)
            if report.loss > self._config.spike * median:
                return f"the loss rose to {report.loss:.4g}, from a median of {median:.4g}"
        self._recent.append(report.loss)
        return None
