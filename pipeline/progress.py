"""How far training stages are: updates done, speed, time left, and work that was lost. From storage alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from cluster.storage import Storage
from pipeline.head import HeadDocument, read_head
from pipeline.status import StageStatus, WorkflowStatus
from pipeline.task_progress import read_tasks
from stages.metrics import MetricReader, Point, last_file, last_point

AT_ONCE = 16
"""Stages that are looked at side by side."""
LOSS = "train/loss"
SHOWN = ("images_per_s", "data_wait", "pace", "slowest_rank", "compute_skew")
"""Of the newest interval; fields of `StageStatus`, and metrics below `train/`."""


class Progress:
    """Fills in what the events of a workflow do not tell of its training stages. Cheap to ask again and again."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._tails: dict[str, Tail] = {}
        self._repeated: dict[str, int] = {}
        self._reached: dict[str, int] = {}

    def measure(self, status: WorkflowStatus) -> WorkflowStatus:
        """The same status, whose training stages have `update`, `seconds_left`, `updates_repeated` and `SHOWN`."""
        stages = status.stages.values()
        looked_at = [s for s in stages if s.updates or "updates" in s.metrics or s.outcome == "running" or s.tasks]
        if looked_at:
            with ThreadPoolExecutor(min(AT_ONCE, len(looked_at))) as pool:
                list(pool.map(self._measure, looked_at))
        return status

    def _measure(self, stage: StageStatus) -> None:
        if not stage.updates and "updates" not in stage.metrics:
            self._count_tasks(stage)
            return
        if stage.outcome in ("done", "reused") and "updates" in stage.metrics:
            stage.update = stage.updates = int(stage.metrics["updates"])
            self._forget(stage)
            self._lost(stage)
        elif stage.prefix is not None and stage.updates:
            self._under_way(stage, stage.prefix)

    def _count_tasks(self, stage: StageStatus) -> None:
        running = stage.outcome == "running" and stage.prefix is not None
        count = read_tasks(self._storage, str(stage.prefix)) if running else None
        stage.tasks = str(count) if count is not None else ""
        stage.tasks_done, stage.tasks_total = (count.done, count.total) if count is not None else (None, None)

    def tail(self, stage: StageStatus) -> Tail | None:
        """The newest points of the stage's newest attempt, if any."""
        return self._tails.get(stage.prefix) if stage.prefix is not None else None

    def _under_way(self, stage: StageStatus, prefix: str) -> None:
        tail = self._tails.setdefault(prefix, Tail(self._storage, prefix))
        tail.update()
        stage.update = max(tail.step, stage.began.get(stage.attempt or 0, 0))
        self._forget(stage)
        if stage.outcome == "running":
            for name in SHOWN:
                setattr(stage, name, tail.values.get(f"train/{name}"))
            stage.seconds_left = tail.seconds_left(stage.updates or 0)
        self._lost(stage)

    def _forget(self, stage: StageStatus) -> None:
        stage.seconds_left = None
        for name in SHOWN:
            setattr(stage, name, None)

    def _lost(self, stage: StageStatus) -> None:
        """Looked at once for each new attempt: those before it do not change."""
        key = f"{stage.folder} {stage.attempt}"
        if stage.folder is not None and key not in self._repeated:
            head = read_head(self._storage, stage.folder)
            if head is not None:
                self._repeated[key] = self._count_repeated(stage.folder, head[0], stage.attempt, stage.began)
        stage.updates_repeated = self._repeated.get(key)

    def _count_repeated(self, folder: str, head: HeadDocument, newest: int | None, began: dict[int, int]) -> int:
        return sum(
            turn.repeated for turn in turns(head, newest or head.attempt, began, partial(self._end, folder, head))
        )

    def _end(self, folder: str, head: HeadDocument, attempt: int) -> int:
        """The last update that an attempt has made, which is looked up once."""
        prefix = f"{folder}/attempts/{attempt}"
        if prefix not in self._reached:
            self._reached[prefix] = reached(self._storage, folder, head, attempt)
        return self._reached[prefix]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Where one attempt gave way to the next: it had made update `end`, and the next one went on from `back_to`."""

    attempt: int
    end: int
    back_to: int

    @property
    def repeated(self) -> int:
        """Updates that it made and a later one made again."""
        return max(0, self.end - self.back_to)


def turns(head: HeadDocument, newest: int, began: Mapping[int, int], end: Callable[[int], int]) -> Iterator[Turn]:
    """Of all attempts before the newest one, oldest first.

    `began` has the updates from which attempts went on, as far as events tell; `end` the last one that each has made.
    """
    starts = {number: began.get(number, _start(head, number)) for number in range(1, newest + 1)}
    for number in range(1, newest):
        yield Turn(attempt=number, end=max(end(number), starts[number]), back_to=starts[number + 1])


def reached(storage: Storage, folder: str, head: HeadDocument, attempt: int) -> int:
    """The last update that an attempt has made, as far as its points and checkpoints tell."""
    point = last_point(storage, f"{folder}/attempts/{attempt}")
    committed = [segment.end for segment in head.history if segment.attempt == attempt]
    return max([*committed, point.step if point is not None else 0])


def _start(head: HeadDocument, attempt: int) -> int:
    """Where an attempt of another workflow's driver went on, as the history tells."""
    return max((segment.end for segment in head.history if segment.attempt < attempt), default=0)


class Tail:
    """The newest points of an attempt, without reading all those before."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        newest = last_file(storage, prefix)
        number = int(PurePosixPath(newest).stem) if newest is not None else 0
        # One more than the last, which may hold an evaluation's points alone.
        self._reader = MetricReader(storage, prefix, start=max(0, number - 1))
        self._first: Point | None = next(MetricReader(storage, prefix).new_points(), None) if number else None
        self._last: Point | None = None
        self.values: dict[str, float] = {}

    @property
    def step(self) -> int:
        """The last update of which there are points; 0 where there are none."""
        return self._last.step if self._last is not None else 0

    def update(self) -> None:
        """Read what is new."""
        for point in self._reader.new_points():
            self._first = self._first or point
            self._last = point if self._last is None or point.step >= self._last.step else self._last
            self.values[point.name] = point.value

    def seconds_left(self, total: int) -> float | None:
        """Until update `total`, at the attempt's pace so far, by the clock of the machine that measured it."""
        if self._first is None or self._last is None or self._last.step <= self._first.step:
            return None
        pace = (self._last.time_ms - self._first.time_ms) / 1000 / (self._last.step - self._first.step)
        return max(0.0, pace * (total - self._last.step))
