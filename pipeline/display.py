"""What a person sees: events as lines, and the tables of status, plan and results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from cluster.sizes import size
from pipeline.checkpoints import Audited, Checkpoint
from pipeline.plan import PlannedStage
from pipeline.record import Event
from pipeline.status import StageStatus, WorkflowStatus
from pipeline.told import TOLD, driver_gave_up, driver_lost, origin
from pipeline.words import duration, headline
from stages.data.bound import WAITING
from stages.training.slow import SKEWED, SLOW

SHOWN_DIFFERENCES = 3
"""Fields of a planned stage that are shown of those that differ from a finished one."""
SHOWN_TROUBLES = 10
MARKS = {
    "pending": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "done": ("✓", "green"),
    "reused": ("↺", "green"),
    "failed": ("✗", "bold red"),
    "skipped": ("–", "yellow"),
    "stopped": ("■", "yellow"),
}


def figures(stage: StageStatus) -> str:
    """How far a training stage is, as people say it; empty where nothing is known."""
    if stage.update is None or not stage.updates:
        return ""
    speed = f"{stage.images_per_s:.0f} images/s" if stage.images_per_s is not None else ""
    waits = stage.data_wait is not None and stage.data_wait >= WAITING
    waiting = f"waits for images {stage.data_wait:.0%} of the time" if waits else ""
    left = f"{duration(stage.seconds_left)} left" if stage.seconds_left is not None else ""
    return joined(f"{stage.update}/{stage.updates} updates", speed, _slow(stage), waiting, left)


def _slow(stage: StageStatus) -> str:
    """Where training is slower than it was, or one rank than the others."""
    slow = f"at {stage.pace:.0%} of its usual speed" if stage.pace is not None and stage.pace < SLOW else ""
    if stage.slowest_rank is None or stage.compute_skew is None or stage.compute_skew < SKEWED:
        return slow
    late = f"rank {stage.slowest_rank:.0f} computes {stage.compute_skew:.1f} times as long as the others"
    return joined(slow, late)


def attempt(stage: StageStatus) -> str:
    """Of a stage that did not get through at once: which attempt it is, and what that has cost."""
    lost = f"{stage.updates_repeated} updates repeated" if stage.updates_repeated else ""
    return joined(f"attempt {stage.attempt}" if (stage.attempt or 1) > 1 else "", lost)


def joined(*parts: str) -> str:
    """Figures beside each other; those that are empty are left out."""
    return "  ".join(part for part in parts if part)


def describe(event: Event) -> str:
    """One event as one line, or nothing where it is of no interest to a reader."""
    data, stage = event.data, event.stage
    match event.type:
        case "workflow_ended":
            return f"workflow {data['state']}"
        case "driver_lost":
            return driver_lost(data)
        case "driver_gave_up":
            return driver_gave_up(data)
        case "waiting":
            return f"{stage or 'workflow'}: waiting for {data['holder']}"
        case "attempt_started":
            return f"{stage}: attempt {data['attempt']} started {origin(data)}".rstrip()
        case "stage_reused":
            return f"{stage}: reused"
        case "stages_retried":
            return f"to be made anew: {', '.join(map(str, _listed(data['stages'])))}"
        case "stage_done":
            return f"{stage}: done in {duration(float(str(data['seconds'])))}  {headline(_figures(data['metrics']))}"
        case "stage_failed" | "stage_skipped" | "stage_stopped":
            reason = data.get("message") or data.get("reason") or ""
            return f"{stage}: {event.type.removeprefix('stage_')}  {reason}"
        case "attempt_ended":
            return f"{stage}: attempt {data['attempt']} {data['outcome']}  {data['message']}"
        case "stage_retried":
            return f"{stage}: trying again in {data['wait_seconds']} s"
        case kind if kind in TOLD:
            return f"{stage}: {TOLD[kind](data)}"
        case _:
            return ""


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _figures(value: object) -> dict[str, float]:
    return {str(k): float(v) for k, v in value.items()} if isinstance(value, dict) else {}


def checkpoint_table(rows: Sequence[Checkpoint]) -> Table:
    """One line for each committed checkpoint."""
    table = Table()
    for column in ("stage", "update", "samples", "size", "ranks", "attempt", "address"):
        table.add_column(column, justify="left" if column in ("stage", "address") else "right", overflow="fold")
    for row in rows:
        place = Text(row.problem, style="red") if row.problem else Text(row.address)
        ranks = str(row.world_size or "?")
        table.add_row(row.stage, str(row.update), f"{row.samples:,}", size(row.bytes), ranks, str(row.attempt), place)
    return table


def audit_line(row: Audited, *, fast: bool) -> Text:
    """What was looked at, and whether it is whole."""
    if row.problems:
        return Text("\n".join([f"✗ {row.what}", *(f"    {problem}" for problem in row.problems)]), style="red")
    looked = "sizes" if fast else "sha256"
    return Text(f"✓ {row.what}: {looked} of {row.files} file{'s' if row.files != 1 else ''}, {size(row.bytes)}")


def status_table(status: WorkflowStatus) -> Table:
    """Stage, outcome, time and main figures."""
    # What has several lines, the end of a log, stands below the table.
    short = status.message and "\n" not in status.message
    state = f"{status.state} ({status.message})" if short else status.state
    # As Text, since messages may have words in brackets, which would be taken for markup.
    table = Table(title=Text(f"{status.id}: {state}"), title_justify="left", title_style="bold")
    for column in ("stage", "outcome", "time", "figures"):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for stage in status.stages.values():
        mark, style = MARKS[stage.outcome]
        table.add_row(
            stage.name,
            Text(f"{mark} {stage.outcome}", style=style),
            duration(stage.seconds) if stage.seconds is not None else "",
            Text(
                joined(headline(stage.metrics) or joined(figures(stage) or stage.tasks, stage.message), attempt(stage))
            ),
        )
    return table


def trouble_lines(status: WorkflowStatus) -> Iterator[Text]:
    """What went wrong, the newest last, and how much of it is left out."""
    if status.troubles:
        count = len(status.troubles)
        part = f" (the newest {SHOWN_TROUBLES} of {count})" if count > SHOWN_TROUBLES else ""
        yield Text(f"what went wrong{part}", style="bold")
    for item in status.troubles[-SHOWN_TROUBLES:]:
        moment = time.strftime("%m-%d %H:%M:%S", time.localtime(item.time_ms / 1000))
        yield Text.assemble((f"{moment}  ", "dim"), item.text)


def plan_table(name: str, stages: Iterable[PlannedStage]) -> Table:
    """What would run, and why."""
    table = Table(title=f"plan of {name}", title_justify="left", title_style="bold")
    for column in ("stage", "action", "why", "work"):
        table.add_column(column, overflow="fold")
    styles = {"reuse": "green", "resume": "yellow", "run": "cyan"}
    for stage in stages:
        action = Text(stage.action, style=styles[stage.action])
        table.add_row(stage.name, action, _why_cell(stage), _work_cell(stage))
    return table


def _why_cell(stage: PlannedStage) -> str:
    """The reason and the first of the fields that differ; `--json` has all of them."""
    shown = stage.why[: 1 + SHOWN_DIFFERENCES]
    left = len(stage.why) - len(shown)
    return "\n".join([*shown, f"and {left} more"] if left else shown)


def _work_cell(stage: PlannedStage) -> Text:
    work, cell = stage.work, Text(stage.unknown, style="dim")
    if work:
        cell = Text(
            f"{stage.network}: {work['parameters'] / 1e6:.2f} M parameters\n"
            f"{work['updates']:,.0f} updates, {work['images']:,.0f} images, {work['exaflops']:.4g} exaFLOPs\n"
            f"{work['memory_gb']:.3g} GB on each worker's device"
        )
    for warning in stage.warnings:
        cell.append("\n" if cell else "").append(f"! {warning}", style="yellow not dim")
    return cell


def fewshot_table(rows: list[dict[str, object]]) -> Table:
    """Accuracy by number of shots: one line per data set, class set, kind of features and classifier.

    Data sets and classifiers are named where there are several.
    """
    shots = sorted({int(str(row["shots"])) for row in rows})
    title = "few-shot test accuracy in %: mean ± standard error over draws"
    table = Table(title=title, title_justify="left", title_style="bold")
    varied = [name for name in ("data", "classifier") if len({row.get(name) for row in rows}) > 1]
    for name in ("classes", "features", *varied):
        table.add_column(name)
    for count in shots:
        table.add_column(f"{count} shot" + ("s" if count > 1 else ""), justify="right")
    lines: dict[tuple[str, ...], dict[int, str]] = {}
    for row in rows:
        cell = f"{100 * float(str(row['accuracy'])):.1f} ± {100 * float(str(row['standard_error'])):.1f}"
        key = tuple(str(row.get(name)) for name in ("class_set", "features", *varied))
        lines.setdefault(key, {})[int(str(row["shots"]))] = cell
    for (classes, features, *others), cells in lines.items():
        shown = {"features": "pretrained", "pixels": "raw pixels"}.get(features, features)
        said = [classes.replace("_", " "), shown, *(name.replace("_", " ") for name in others)]
        table.add_row(*said, *(cells.get(count, "") for count in shots))
    return table
