"""The choice among models: no bytes are copied, the result is the chosen model itself."""

from __future__ import annotations

import math

from cluster.errors import UserError
from stages.choice.config import ChoiceConfig, other_metric
from stages.context import Context, Inputs, Output, Result


def run(config: ChoiceConfig, inputs: Inputs, context: Context) -> Result:
    """The model whose figure is best; the table has all of them."""
    models = [inputs[f"models.{number}"] for number in range(len(config.models))]
    figures = [_figure(config, name, model) for name, model in zip(config.models, models, strict=True)]
    best = max(range(len(models)), key=lambda number: _rank(config, figures[number]))
    rows = [
        {"stage": name, config.metric: figure, "chosen": number == best}
        for number, (name, figure) in enumerate(zip(config.models, figures, strict=True))
    ]
    metrics = {**models[best].meta["metrics"], "candidates": float(len(models))}
    return Result(output=models[best], metrics=metrics, tables={"choice": rows})


def _figure(config: ChoiceConfig, name: str, model: Output) -> float:
    figures = model.meta.get("metrics", {})
    if config.metric not in figures:
        known = ", ".join(figures) or "none"
        raise UserError(
            f"metric={config.metric}: the model from '{name}' has no such figure; it has {known}: "
            f"{other_metric(figures)}"
        )
    return figures[config.metric]


def _rank(config: ChoiceConfig, figure: float) -> float:
    if math.isnan(figure):
        return -math.inf
    return figure if config.mode == "max" else -figure
