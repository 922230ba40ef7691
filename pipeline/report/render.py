"""From a report to a page: one HTML file, without scripts, that asks for nothing from outside.

What comes from workflow files, names of classes and logs is text of others: the templates escape all of it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pipeline.report.chain import chain
from pipeline.report.chart import of_curve
from pipeline.report.document import Report, StageReport, Table
from pipeline.report.sentences import citation, commands, commit, lost, lost_in_all, moment, submitted
from pipeline.report.tables import value_text
from pipeline.words import duration

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def page(report: Report) -> str:
    """The report as HTML."""
    drawn = chain(report)
    return template("report.html.j2").render(
        report=report,
        version=report.version,
        made_ms=report.made_ms,
        chain=drawn,
        lost_bars=any(bar.outcome in ("lost", "failed") for row in drawn.rows for bar in row.bars),
        charts={stage.name: [of_curve(curve) for curve in stage.curves] for stage in report.stages},
        submitted=submitted(report.origin),
        commit=commit(report.origin),
        losses=[(loss.stage, lost(loss)) for loss in report.losses],
        lost_in_all=lost_in_all(report),
        placement=_placement(report),
        versions=_versions(report),
        commands=list(commands(report)),
        citation=citation(report),
        workflow_data=base64.b64encode(report.workflow.encode()).decode(),
        sentence=_sentence,
    )


def template(name: str) -> Template:
    """A template of this package."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    found = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"duration": duration, "moment": moment}
    # Our own file, and the only text that is not escaped.
    style = Markup((files("pipeline.report") / "report.css").read_text())
    found.globals |= {"css": style, "flat": flat_texts, "texts": _texts}
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of fields by `name.name`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def flat_texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields of fields, their values as a workflow file has them."""
    return [(name, field_text(value)) for name, value in flat(values)]


def field_text(value: Any) -> str:
    """A field's value as a workflow file has it."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"[{', '.join(map(field_text, value))}]" if isinstance(value, list | tuple) else str(value)


def _texts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, value_text(name, value)) for name, value in metrics.items()]


def _sentence(stage: StageReport) -> str:
    """What became of a stage, in a line."""
    count = len(stage.spans)
    parts = [stage.headline]
    if stage.update is not None and stage.updates and stage.outcome not in ("done", "reused"):
        parts = [f"{stage.update:,} of {stage.updates:,} updates"]
    if stage.outcome == "reused":
        by = f" by {stage.made_by}" if stage.made_by else ""
        when = f" on {moment(stage.made_ms)}" if stage.made_ms is not None else ""
        took = f", in {duration(stage.seconds)}" if stage.seconds is not None else ""
        parts.append(f"reused: made{by}{when}{took}")
    elif stage.seconds is not None:
        parts.append(duration(stage.seconds) + (f" in {count} attempts" if count > 1 else ""))
    return "; ".join(part for part in parts if part)


def _placement(report: Report) -> Table:
    """Where each stage's newest attempt ran, in a few columns."""
    rows = []
    for stage in report.stages:
        span = stage.spans[-1] if stage.spans else None
        processes = str(span.processes) if span is not None else ""
        gpus = str(span.gpus or "") if span is not None else ""
        zero = stage.placement.get("zero_stage")
        device = stage.builds.get("device") or stage.builds.get("cpu", "")
        rows.append([stage.name, device, processes, gpus, "" if zero is None else str(zero)])
    return Table(
        name="placement",
        title="",
        columns=["stage", "device", "processes", "GPUs", "ZeRO"],
        numeric=[False, False, True, True, True],
        rows=rows,
    )


def _versions(report: Report) -> Table:
    """Of what computed the bits, a column for each set of versions."""
    sets: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage in report.stages:
        if stage.builds:
            sets.setdefault(tuple(sorted(stage.builds.items())), []).append(stage.name)
    names = sorted({name for builds in sets for name, _ in builds})
    return Table(
        name="versions",
        title="",
        columns=["", *(", ".join(stages) for stages in sets.values())],
        numeric=[False] * (1 + len(sets)),
        rows=[[name, *(dict(builds).get(name, "") for builds in sets)] for name in names],
    )
