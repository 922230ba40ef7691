"""What a report says in words: what was lost, how to go on, and how to name what came out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.report.document import Loss, Report, StageReport
from pipeline.words import duration


def moment(time_ms: int) -> str:
    """A time in words, the same wherever the page is read."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def submitted(origin: Mapping[str, Any]) -> str:
    """Who submitted a workflow from where; empty where nobody has kept it."""
    return f"by {origin['user']} on {origin['host']}" if origin else ""


def commit(origin: Mapping[str, Any]) -> str:
    """The commit that a workflow was submitted from; empty where there was none."""
    git = origin.get("git")
    if not git:
        return ""
    branch = f" of {git['branch']}" if git.get("branch") else ""
    return f"{git['commit']}{branch}" + (", with changes that were not committed" if git.get("changed") else "")


def lost(loss: Loss) -> str:
    """What ended an attempt, and what that cost."""
    told = f"attempt {loss.attempt}: {loss.reason}."
    if loss.repeated:
        took = f", {duration(loss.seconds)} of training" if loss.seconds is not None else ""
        told += (
            f" It had made update {loss.end:,}, the next attempt went on from {loss.back_to:,}: "
            f"{_updates(loss.repeated)} made again{took}."
        )
    elif loss.end:
        told += f" The next attempt went on from update {loss.back_to:,}: no update was made again."
    if loss.pause is not None and loss.pause >= 1:
        told += f" {duration(loss.pause)} passed between the two."
    return told


def lost_in_all(report: Report) -> str:
    """The sum of all losses, or that there was none."""
    repeated = sum(loss.repeated for loss in report.losses)
    made = sum(stage.update or 0 for stage in report.stages if stage.outcome != "reused")
    if not report.losses:
        return "Every attempt came to its end: no update was made twice."
    attempts = f"{len(report.losses)} attempt{'s' if len(report.losses) > 1 else ''} ended early"
    seconds = sum(loss.seconds or 0.0 for loss in report.losses if loss.repeated)
    if not repeated:
        return f"{attempts}; no update was made twice."
    part = f", {repeated / made:.1%} of {made:,}" if made else ""
    return f"{attempts}; {_updates(repeated)} made again{part}, which had taken {duration(seconds)}."


def _updates(count: int) -> str:
    return "1 update was" if count == 1 else f"{count:,} updates were"


def commands(report: Report) -> Iterator[tuple[str, str]]:
    """What to do with the workflow, and the command for it."""
    name, place = shlex.quote(f"{report.name}.yaml"), f"--root {shlex.quote(report.root)}"
    if report.state in ("failed", "stopped", "silent"):
        yield "go on with it", f"patchline resume {report.id} {place}"
    yield "what would run again, and what is reused", f"patchline plan {name} {place}"
    yield "run the workflow file that is on this page, reusing what is done", f"patchline run {name} {place}"
    yield "make all of it anew, in a folder of its own", f'patchline run {name} --root "file://$PWD/again"'
    trained = [stage for stage in report.stages if stage.updates and stage.digest]
    if trained:
        stage = shlex.quote(trained[0].name)
        yield "train a part again and compare the bits", f"patchline verify {stage} --workflow {report.id} {place}"
    yield "compare every stored byte", f"patchline audit {report.id} {place}"


def citation(report: Report) -> str:
    """Lines by which others find exactly these results."""
    when = f", {moment(report.ended_ms)}" if report.done and report.ended_ms is not None else ""
    codes = sorted({stage.builds["code"] for stage in report.stages if "code" in stage.builds})
    versions = sorted({stage.builds["patchline"] for stage in report.stages if "patchline" in stage.builds})
    code = f" (code {', '.join(codes)})" if codes else ""
    lines = [f"{report.id}{when}, patchline {', '.join(versions)}{code}"]
    lines += [f"commit {text}"] if (text := commit(report.origin)) else []
    return "\n".join(lines + [_named(stage) for stage in report.stages if stage.digest])


def _named(stage: StageReport) -> str:
    return f"{stage.name}{f', data set {stage.dataset}' if stage.dataset else ''}: sha256:{stage.digest}"
