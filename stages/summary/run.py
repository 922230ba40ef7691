"""The summary of several models or evaluations: a row for each group, each figure's mean and standard deviation."""

from __future__ import annotations

import statistics
from typing import Any

from cluster.errors import UserError
from stages.context import Context, Inputs, Output, Result
from stages.rendered import csv_bytes
from stages.summary.config import SummaryConfig, group_of

SPLITS = ("validation", "test")


def run(config: SummaryConfig, inputs: Inputs, context: Context) -> Result:
    """The table, also as `summary.csv` of the output. Raises UserError for a figure that a model has not."""
    models = [inputs[f"models.{number}"] for number in range(len(config.models))]
    metrics = config.metrics or _common(models)
    if not metrics:
        raise UserError(f"no figure is known of all of {', '.join(config.models)}: name one as metrics")
    groups: dict[str, list[dict[str, float]]] = {}
    names = config.groups or tuple(group_of(stage) for stage in config.models)
    for stage, group, model in zip(config.models, names, models, strict=True):
        groups.setdefault(group, []).append(_figures(stage, model, metrics))
    rows = [_row(group, figures, metrics) for group, figures in groups.items()]
    file = context.write("summary.csv", csv_bytes(rows))
    output = context.commit("summary", [file], {"metrics": list(metrics), "rows": rows})
    shown = {f"{row['group']}/{metric}": row[metric] for row in rows for metric in metrics}
    return Result(output=output, metrics={"models": float(len(models)), **shown}, tables={"summary": rows})


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """The mean, and the sample's standard deviation, as the paper's tables have it. One value has none."""
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values, mean) if len(values) > 1 else None


def _common(models: list[Output]) -> tuple[str, ...]:
    """The figures that all have: of models those of splits, validation first, accuracy before loss."""
    known = [model.meta.get("metrics", {}) for model in models]
    found = [name for name in known[0] if all(name in other for other in known)]
    if all(model.kind == "evaluation" for model in models):
        return tuple(name for name in found if not name.endswith("/images"))
    found = [name for name in found if name.partition("/")[0] in SPLITS]
    return tuple(sorted(found, key=lambda name: (SPLITS.index(name.partition("/")[0]), name)))


def _figures(stage: str, model: Output, metrics: tuple[str, ...]) -> dict[str, float]:
    known = model.meta.get("metrics", {})
    for metric in metrics:
        if metric not in known:
            there = ", ".join(known) or "none"
            raise UserError(f"metrics={metric}: the {model.kind} from '{stage}' has no such figure; it has {there}")
    return {metric: float(known[metric]) for metric in metrics}


def _row(group: str, figures: list[dict[str, float]], metrics: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {"group": group, "models": len(figures)}
    for metric in metrics:
        mean, deviation = mean_and_deviation([own[metric] for own in figures])
        error = None if deviation is None else deviation / len(figures) ** 0.5
        row |= {metric: mean, f"{metric} ±": deviation, f"{metric} standard error": error}
    return row
