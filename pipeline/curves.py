"""The points of a stage on their way to MLflow: live for each attempt, for the stage once a commit covers them."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.storage import Storage
from pipeline.head import Segment, read_head
from stages.metrics import MetricReader, Point, is_evaluation, read_points
from stages.training.keeping import update_and_attempt


class Curves:
    """Which points of a stage are there, which are committed, and which are still to be sent."""

    def __init__(self, storage: Storage, folder: str, *, has_updates: bool, evaluated: bool = False) -> None:
        """`evaluated` tells that checkpoints are evaluated on the way: the points of that are read too."""
        self._storage, self._folder, self._has_updates = storage, folder, has_updates
        self.evaluated = evaluated
        self._evaluations = _Evaluations(storage, folder)
        self._held_evaluations: list[Point] = []
        self._readers: dict[int, MetricReader] = {}
        self._over: set[int] = set()
        """Attempts that a later one followed, and of which all has been read: no points come any more."""
        self._held: dict[int, list[Point]] = {}
        self._history: tuple[Segment, ...] = ()
        self._evaluated: set[tuple[str, int]] = set()
        """Evaluations by metric and update that are committed."""
        self.checkpoint: str | None = None
        """Key prefix of the stage's newest committed checkpoint; `shown` is what the stage's run says."""
        self.shown: str | None = None
        self.live: dict[int, list[Point]] = {}
        """Points to be sent to the attempts' runs; the sender empties the lists."""
        self.committed: list[Point] = []
        """Points to be sent to the stage's run; the sender empties the list."""

    def follow(self, attempt: int) -> None:
        """Read this attempt's points as they appear, from the first one."""
        self._read(attempt)
        self._over.discard(attempt)
        self._evaluations.read_again(attempt)
        self.live[attempt] = []

    def collect(self) -> None:
        """Look for new points, for points that a checkpoint has come to cover, and for the newest checkpoint."""
        found = read_head(self._storage, self._folder) if self._has_updates else None
        history = self._history = found[0].history if found is not None else ()
        for segment in history:
            if segment.attempt not in self._readers:
                # An earlier driver's attempt: its points are read from the files, and sent again.
                self._read(segment.attempt)
        newest = max(self._readers, default=0)
        for attempt in sorted(self._readers.keys() - self._over):
            reader = self._readers[attempt]
            # One by one: where storage fails in between, those before are not lost.
            for point in reader.new_points():
                self._held[attempt].append(point)
                if attempt in self.live:
                    self.live[attempt].append(point)
            if attempt < newest:
                self._over.add(attempt)
        for segment in history:
            held = self._held[segment.attempt]
            self.committed += [point for point in held if segment.has(point) and self._is_first(point)]
            self._held[segment.attempt] = [point for point in held if point.step > segment.end]
        if found is not None and found[0].checkpoint is not None:
            self.checkpoint = found[0].checkpoint.prefix
        if found is not None and self.evaluated:
            named = {update_and_attempt(item.prefix)[1] for item in found[0].checkpoints}
            self._collect_evaluations(named, history[-1].end if history else 0)

    def _is_first(self, point: Point) -> bool:
        """Whether it is no evaluation of what an earlier attempt has evaluated."""
        own = (point.name, point.step)
        if not is_evaluation(point.name):
            return True
        first = own not in self._evaluated
        self._evaluated.add(own)
        return first

    def lost(self, attempt: int) -> list[Point]:
        """What an attempt did after the checkpoint that the next one went on from: points with it as step.

        Empty where it lost nothing, or left no points. The resolution is that of the points, `log_every`.
        """
        if attempt not in self._readers:
            self._read(attempt)
        self.collect()
        covered = max((segment.end for segment in self._history if segment.attempt <= attempt), default=0)
        held = sorted(
            (p for p in self._held[attempt] if p.step > covered), key=lambda point: (point.step, point.time_ms)
        )
        if not held:
            return []
        first, last = held[0], held[-1]
        values = {"lost/updates": float(last.step - covered)}
        if last.step > first.step:
            # The first of them has taken time too, which no point tells.
            pace = (last.time_ms - first.time_ms) / (last.step - first.step)
            values["lost/seconds"] = pace * values["lost/updates"] / 1000
        return [Point(name=name, value=v, step=attempt, time_ms=last.time_ms) for name, v in values.items()]

    def _collect_evaluations(self, named: set[int], covered: int) -> None:
        for attempt, points, repeated in self._evaluations.new(set(self._readers) | named, named):
            if attempt in self.live:
                self.live[attempt] += points
            self._held_evaluations += [] if repeated else points
        held = self._held_evaluations
        self.committed += [point for point in held if point.step <= covered]
        self._held_evaluations = [point for point in held if point.step > covered]

    def _read(self, attempt: int) -> None:
        self._readers[attempt] = MetricReader(self._storage, f"{self._folder}/attempts/{attempt}")
        self._held[attempt] = []


class _Evaluations:
    """The points that evaluations of checkpoints leave: a file for each, written whole."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._read: set[str] = set()
        self._updates: set[str] = set()
        self._looked_at: set[int] = set()
        self._named: set[int] = set()

    def read_again(self, attempt: int) -> None:
        """What this attempt has stored is new once more, though repeated."""
        self._looked_at.discard(attempt)
        self._read = {key for key in self._read if not key.startswith(self._prefix(attempt))}

    def _prefix(self, attempt: int) -> str:
        return f"{self._folder}/attempts/{attempt}/fewshot/"

    def new(self, attempts: set[int], named: set[int]) -> Iterator[tuple[int, list[Point], bool]]:
        """What these attempts have stored since the last call, each with whether an earlier one has that update too.

        `named` are those with checkpoints in HEAD. To others that were looked at before, the newest one apart, no
        points come any more: a checkpoint stays until it is evaluated.
        """
        newest = {max(attempts, default=0)}
        for attempt in sorted(attempts & (attempts - self._looked_at | named | self._named | newest)):
            for key in self._storage.list(self._prefix(attempt)):
                if key in self._read or not key.endswith(".jsonl"):
                    continue
                points, update = read_points(self._storage, key), key.rpartition("/")[2]
                repeated = update in self._updates
                self._read.add(key)
                self._updates.add(update)
                yield attempt, points, repeated
            self._looked_at.add(attempt)
        self._named = named
