"""What a report says of a workflow, as plain values: JSON can hold all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WIDE = 1.9
"""Times as wide as high: so are pictures of several panels beside each other."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that people look for first."""

    name: str
    """The same in all reports, so that two can be compared."""
    label: str
    value: float
    text: str
    """The value as people say it."""
    detail: str = ""


@dataclass(kw_only=True)
class Span:
    """An attempt in time, as far as a driver of this workflow made it."""

    attempt: int
    folder: str
    started_ms: int
    ended_ms: int
    outcome: str = "running"
    """running, done, failed, stopped, or lost: its driver ended without a word."""
    message: str = ""
    began_at: int = 0
    """The update from which it went on."""
    processes: int = 1
    gpus: int = 0
    """Of all its processes."""
    lost_seconds: float | None = None
    """At its end: time of updates that were made again; None where it made none, or no points tell."""

    @property
    def seconds(self) -> float:
        return max(0, self.ended_ms - self.started_ms) / 1000


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What ended an attempt before its time, and what that cost."""

    stage: str
    attempt: int
    reason: str
    end: int
    """The last update that it made, as far as points tell."""
    back_to: int
    """The update from which the next attempt went on; `end` where none has come yet."""
    repeated: int
    """Updates that were made again."""
    seconds: float | None
    """In which these had been made; None where no points tell."""
    pause: float | None
    """Seconds from its end to the next attempt's beginning; None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a curve. A point is update, mean, least and greatest of the updates that it stands for."""

    metric: str
    label: str
    points: list[list[float]]
    attempt: int | None = None
    """Of updates that were made again: the attempt that made them first."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where training went back: from an update to one before it."""

    end: int
    back_to: int


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Metrics that belong together, by update."""

    name: str
    title: str
    unit: str
    """number, rate (which is shown from 0) or percent (likewise, of values up to 1)."""
    series: list[Series]
    marks: list[Mark] = field(default_factory=list)
    thinned: int = 1
    """Of how many stored files of points one was read."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as people read them. `numeric` says of each column whether it is set flush right."""

    name: str
    title: str
    columns: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    strong: list[int] = field(default_factory=list)
    """Rows that stand out."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG file of an output."""

    name: str
    caption: str
    address: str
    data: str | None
    """In base64; None where it is too large for a page, is gone, or is no PNG."""
    width: int = 0
    height: int = 0
    """In pixels."""
    problem: str = ""
    """Why there are no data."""

    @property
    def wide(self) -> bool:
        """Whether it wants the width of the page."""
        return self.width > WIDE * self.height


@dataclass(kw_only=True)
class StageReport:
    """One stage."""

    name: str
    kind: str
    outcome: str
    message: str = ""
    inputs: list[str] = field(default_factory=list)
    """The stages that it reads."""
    folder: str | None = None
    made_by: str | None = None
    """Where it was reused: the workflow that made it, as far as that is known."""
    made_ms: int | None = None
    seconds: float | None = None
    update: int | None = None
    updates: int | None = None
    headline: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """The fields that determine its result."""
    placement: dict[str, Any] = field(default_factory=dict)
    """As the newest attempt had it, or else as the workflow file has it."""
    builds: dict[str, str] = field(default_factory=dict)
    output: str | None = None
    """Address of what came out; None where it is not there."""
    digest: str | None = None
    dataset: str | None = None
    """What the data set is called that came out."""
    images_seen: int | None = None
    exaflops: float | None = None


@dataclass(kw_only=True)
class Cost:
    """What this workflow's own attempts have used; what is reused costs nothing."""

    seconds: float
    """In which at least one attempt was at work."""
    process_hours: float
    """Of stages that train; processes without a GPU."""
    gpu_hours: float
    price: float | None = None
    """Money for a GPU and hour."""
    money: float | None = None
    saved_seconds: float = 0.0
    """Time that reused stages had taken."""


@dataclass(kw_only=True)
class Report:
    """A workflow as it is known at one moment."""

    id: str
    name: str
    description: str
    state: str
    message: str
    root: str
    place: str
    """The machine of the newest driver."""
    origin: dict[str, Any]
    """Who submitted it from where, and from which commit, as `pipeline.provenance` has kept it."""
    started_ms: int | None
    ended_ms: int | None
    made_ms: int
    drivers_ms: list[int]
    """When each driver began."""
    figures: list[Figure]
    warnings: list[str]
    stages: list[StageReport]
    losses: list[Loss]
    troubles: list[tuple[int, str]]
    """What went wrong, with its time, oldest first."""
    cost: Cost
    workflow: str
    """The workflow file as it ran."""
    version: str
    """Of the program that made the report."""

    @property
    def done(self) -> bool:
        return self.state == "done"
