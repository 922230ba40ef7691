"""Learning curves: a stage's points as they lie in storage, those that count and those that were made again."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from cluster.storage import NotFound, Storage
from cluster.storage.many import at_once
from pipeline.head import HeadDocument, Segment
from pipeline.report.document import Curve, Loss, Mark, Series
from stages.metrics import Point, last_file, read_points

FILES = 2000
"""Of points that are read for one report: one for each second or so of training. Of more, evenly spaced ones."""
FEWEST = 50
"""That each stage may have, however many stages there are."""
BINS = 240
"""Points that a line is drawn through: on a page, more are none the wiser."""
FEWEST_BINS = 12
"""For what was made again."""
AGAIN = "made again"
ON_THE_WAY, MOST_ON_THE_WAY = "fewshot/", 6
"""Evaluations of checkpoints: how their metrics begin, and how many of them are shown."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    name: str
    title: str
    unit: str
    metrics: Mapping[str, str] = field(default_factory=dict)


KINDS = (
    _Kind(
        name="loss",
        title="Loss",
        unit="number",
        metrics={"train/loss": "training", "validation/loss": "validation", "raw/validation/loss": "without averages"},
    ),
    _Kind(
        name="accuracy",
        title="Accuracy",
        unit="percent",
        metrics={
            "train/accuracy": "training",
            "validation/accuracy": "validation",
            "raw/validation/accuracy": "without averages",
        },
    ),
    _Kind(name="lr", title="Learning rate", unit="rate", metrics={"train/lr": "learning rate"}),
    _Kind(name="gradient_norm", title="Gradient norm", unit="number", metrics={"train/gradient_norm": "norm"}),
    _Kind(name="images_per_s", title="Images per second", unit="rate", metrics={"train/images_per_s": "images/s"}),
    _Kind(
        name="data_wait", title="Waiting for images", unit="percent", metrics={"train/data_wait": "part of the time"}
    ),
)


@dataclass(kw_only=True)
class StagePoints:
    """Points of a stage by attempt; of `every` files of points, one was read."""

    attempts: dict[int, list[Point]]
    every: int = 1


def stage_points(storage: Storage, folder: str, head: HeadDocument, *, files: int = FILES) -> StagePoints:
    """The points of all attempts of a stage. Reads about `files` files, several at once."""
    prefixes = {number: f"{folder}/attempts/{number}" for number in range(1, head.attempt + 1)}
    counts = dict(zip(prefixes, at_once(partial(_count, storage), prefixes.values()), strict=True))
    every = max(1, math.ceil(sum(counts.values()) / files))
    wanted = [
        (attempt, f"{prefixes[attempt]}/metrics/{number:06d}.jsonl")
        for attempt, count in counts.items()
        for number in _spaced(count, every)
    ]
    found: dict[int, list[Point]] = {attempt: [] for attempt in prefixes}
    for (attempt, _), points in zip(wanted, at_once(partial(_read, storage), [key for _, key in wanted]), strict=True):
        found[attempt] += points
    for attempt, prefix in prefixes.items():
        keys = [key for key in storage.list(f"{prefix}/fewshot/") if key.endswith(".jsonl")]
        found[attempt] += [point for points in at_once(partial(_read, storage), keys[-files:]) for point in points]
    return StagePoints(attempts=found, every=every)


def _count(storage: Storage, prefix: str) -> int:
    last = last_file(storage, prefix)
    return int(PurePosixPath(last).stem) + 1 if last is not None else 0


def _spaced(count: int, every: int) -> list[int]:
    """Every so many, and the last one."""
    return sorted({*range(0, count, every), count - 1}) if count else []


def _read(storage: Storage, key: str) -> list[Point]:
    try:
        return read_points(storage, key)
    except NotFound:
        return []


def curves(found: StagePoints, head: HeadDocument, lost: Iterable[Loss]) -> list[Curve]:
    """The curves of a stage: lines of what its result rests on, and beside them what was made again."""
    kept, repeated = split(found.attempts, head)
    marks = [Mark(end=loss.end, back_to=loss.back_to) for loss in lost if loss.end > loss.back_to]
    there = {point.name for points in kept.values() for point in points}
    way = sorted(name for name in there if name.startswith(ON_THE_WAY))[:MOST_ON_THE_WAY]
    labels = {name: name.removeprefix(ON_THE_WAY).replace("/", " ").replace("_", " ") for name in way}
    kinds = [*KINDS, _Kind(name="fewshot", title="Few-shot accuracy on the way", unit="percent", metrics=labels)]
    drawn = []
    for kind in kinds:
        series = list(_series(kind, kept, repeated))
        # A single point is no curve.
        if any(len(own.points) > 1 for own in series):
            drawn.append(
                Curve(
                    name=kind.name,
                    title=kind.title,
                    unit=kind.unit,
                    series=series,
                    marks=marks if any("train/" in own.metric for own in series) else [],
                    thinned=found.every,
                )
            )
    return drawn


def split(
    attempts: Mapping[int, list[Point]], head: HeadDocument
) -> tuple[dict[int, list[Point]], dict[int, list[Point]]]:
    """Points by attempt: those that a checkpoint covers, or that the newest attempt makes; and the others."""
    covered = head.history[-1].end if head.history else 0
    segments = {segment.attempt: segment for segment in head.history}
    newest = segments.get(head.attempt, Segment(attempt=head.attempt, start=covered, end=covered))
    segments[head.attempt] = newest.model_copy(update={"end": sys.maxsize})
    kept: dict[int, list[Point]] = {}
    repeated: dict[int, list[Point]] = {}
    for attempt, points in attempts.items():
        segment = segments.get(attempt)
        for point in points:
            counts = point.name.startswith(ON_THE_WAY) or (segment is not None and segment.has(point))
            (kept if counts else repeated).setdefault(attempt, []).append(point)
    return kept, repeated


def _series(kind: _Kind, kept: Mapping[int, list[Point]], repeated: Mapping[int, list[Point]]) -> Iterator[Series]:
    for metric, label in kind.metrics.items():
        points = _line(point for own in kept.values() for point in own if point.name == metric)
        if not points:
            continue
        yield Series(metric=metric, label=label, points=thin(points))
        if not metric.startswith("train/"):
            continue
        for attempt, own in repeated.items():
            again = _line(point for point in own if point.name == metric)
            if not again:
                continue
            # From the last point that counts, so that it is seen where it left; as coarse as the line beside it.
            joint = [point for point in points if point[0] < again[0][0]][-1:]
            bins = max(FEWEST_BINS, BINS * len(again) // len(points))
            yield Series(metric=metric, label=AGAIN, points=thin(joint + again, bins), attempt=attempt)


def _line(points: Iterable[Point]) -> list[tuple[int, float]]:
    """By update, the first one of each, without what is no finite number."""
    found: dict[int, float] = {}
    for point in points:
        if math.isfinite(point.value):
            found.setdefault(point.step, point.value)
    return sorted(found.items())


def thin(points: Sequence[tuple[int, float]], bins: int = BINS) -> list[list[float]]:
    """At most so many points, of as many updates each: the middle update, the mean, the least, the greatest."""
    if len(points) <= bins:
        return [[step, value, value, value] for step, value in points]
    first, last = points[0][0], points[-1][0]
    found: dict[int, list[tuple[int, float]]] = {}
    for step, value in points:
        found.setdefault((step - first) * bins // (last - first + 1), []).append((step, value))
    return [_bin(own) for _, own in sorted(found.items())]


def _bin(points: Sequence[tuple[int, float]]) -> list[float]:
    values = [value for _, value in points]
    middle = (points[0][0] + points[-1][0]) / 2
    return [middle, math.fsum(values) / len(values), min(values), max(values)]
