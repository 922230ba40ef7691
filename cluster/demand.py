"""Asking a cluster that grows by itself for the room of a gang.

Ray's autoscaler starts machines for what is asked of the cluster and has no room. A gang that waits outside until there
is room asks nothing, so that it would wait for ever: it asks for its workers' places, and gives them back when they are
there for it to start. They are found all or none, so that of two gangs that wait each does not hold a half.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from cluster.gang import resources

AUTOSCALED = "PATCHLINE_AUTOSCALED"
"""Set to 1 on a cluster that grows. On one that does not, places that are asked for would be others' that wait."""
SETTLE_SECONDS = 5.0
"""After places were given back, until the cluster counts them as free: so long nothing is asked."""


def grows() -> bool:
    """Whether this process's cluster starts machines when it is asked for more than it has."""
    return os.environ.get(AUTOSCALED) == "1"


class Demand:
    """Places for workers that are asked for together. A context manager.

    Those that are found are held, so that their machines do not seem to be without work, until `withdraw` or the end
    of the block; they end with this process at the latest.
    """

    def __init__(
        self, workers: int, cpus: float, gpus: float, *, memory: float = 0, labels: Mapping[str, str] | None = None
    ) -> None:
        self._places = [resources(cpus, gpus, memory)] * workers
        self._labels = [dict(labels)] * workers if labels else None
        self._group: Any = None
        self._quiet_until = 0.0

    def __enter__(self) -> Demand:
        return self

    def __exit__(self, *_: object) -> None:
        self.withdraw()

    def ask(self) -> None:
        """Ask for the places; nothing happens where they have been asked for, or the cluster does not grow."""
        if self._group is not None or not self._places or not grows() or time.monotonic() < self._quiet_until:
            return
        from ray.util.placement_group import placement_group

        from cluster.connect import connect

        connect()
        labels: dict[str, Any] = {"bundle_label_selector": self._labels} if self._labels else {}
        self._group = placement_group(self._places, name="patchline-room", **labels)

    def found(self) -> int:
        """How many of the places there are: all, or none."""
        if self._group is None:
            return 0
        from ray.util.placement_group import placement_group_table

        return len(self._places) if placement_group_table(self._group).get("state") == "CREATED" else 0

    def withdraw(self) -> None:
        """Give the places back, and ask for no more."""
        if self._group is None:
            return
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._group)
        self._group = None
        self._quiet_until = time.monotonic() + SETTLE_SECONDS
