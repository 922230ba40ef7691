"""The points of a stage on their way to MLflow: live for each attempt, for the stage once a commit covers them."""

from __future__ import annotations

from cluster.storage import Storage
from pipeline.head import read_head
from stages.metrics import MetricReader, Point


class Curves:
    """Which points of a stage are there, which are committed, and which are still to be sent."""

    def __init__(self, storage: Storage, folder: str, *, has_updates: bool) -> None:
        self._storage, self._folder, self._has_updates = storage, folder, has_updates
        self._readers: dict[int, MetricReader] = {}
        self._held: dict[int, list[Point]] = {}
        self.checkpoint: str | None = None
        """Key prefix of the stage's newest committed checkpoint; `shown` is what the stage's run says."""
        self.shown: str | None = None
        self.live: dict[int, list[Point]] = {}
        """Points to be sent to the attempts' runs; the sender empties the lists."""
        self.committed: list[Point] = []
        """Points to be sent to the stage's run; the sender empties the list."""

    def follow(self, attempt: int) -> None:
        """Read this attempt's points as they appear."""
        self._read(attempt)
        self.live[attempt] = []

    def collect(self) -> None:
        """Look for new points, for points that a checkpoint has come to cover, and for the newest checkpoint."""
        found = read_head(self._storage, self._folder) if self._has_updates else None
        history = found[0].history if found is not None else ()
        for segment in history:
            if segment.attempt not in self._readers:
                # An earlier driver's attempt: its points are read from the files, and sent again.
                self._read(segment.attempt)
        for attempt, reader in self._readers.items():
            # One by one: where storage fails in between, those before are not lost.
            for point in reader.new_points():
                self._held[attempt].append(point)
                if attempt in self.live:
                    self.live[attempt].append(point)
        for segment in history:
            held = self._held[segment.attempt]
            self.committed += [point for point in held if segment.start < point.step <= segment.end]
            self._held[segment.attempt] = [point for point in held if point.step > segment.end]
        if found is not None and found[0].checkpoint is not None:
            self.checkpoint = found[0].checkpoint.prefix

    def _read(self, attempt: int) -> None:
        self._readers[attempt] = MetricReader(self._storage, f"{self._folder}/attempts/{attempt}")
        self._held[attempt] = []
