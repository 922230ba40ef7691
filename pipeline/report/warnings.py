"""What a reader of a report has to know before believing its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.report.document import Report, StageReport

STATES = {
    "submitted": "It has not begun yet: no driver has taken it up.",
    "running": "It is under way: this is how it stood when the page was made.",
    "silent": "It is not done: its driver gives no sign of life. `patchline resume {id}` continues it.",
    "stopped": "It is not done: it was stopped. `patchline resume {id}` continues it.",
    "failed": "It is not done: it has failed. `patchline resume {id}` tries again.",
}


def warnings(report: Report, differing: Sequence[tuple[str, str]]) -> list[str]:
    """Sentences, the weightiest first. `differing` are stages with what kept an attempt from the same bits."""
    return [*_state(report), *_stages(report.stages), *(f"{stage}: {text}" for stage, text in differing)]


def _state(report: Report) -> Iterator[str]:
    if report.state in STATES:
        yield STATES[report.state].format(id=report.id)
    if report.state != "done" and report.message:
        yield report.message


def _stages(stages: Sequence[StageReport]) -> Iterator[str]:
    for stage in stages:
        if stage.outcome in ("failed", "skipped"):
            yield (
                f"{stage.name}: {stage.outcome}: {stage.message}" if stage.message else f"{stage.name} {stage.outcome}"
            )
        elif stage.outcome in ("done", "reused") and stage.digest is None:
            yield f"{stage.name}: its record is gone, and with it its tables; what follows is what the events tell"
        elif stage.digest is not None and stage.output is None:
            yield f"{stage.name}: its output is gone, or is not the one that its record names"
        elif any(picture.data is None for picture in stage.pictures):
            gone = [f"{picture.name} ({picture.problem})" for picture in stage.pictures if picture.data is None]
            yield f"{stage.name}: not shown: {', '.join(gone)}"
