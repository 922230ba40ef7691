"""The tables of models beside each other: what was chosen from, means over seeds, and accuracies by compute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.table import Table

Rows = list[dict[str, Any]]
PERCENT = re.compile(r"(accuracy|accuracy_top\d+|_shot(_\w+)?)$")
"""Figures between 0 and 1 that people read in %."""


def choice_table(rows: Rows) -> Table:
    """The models that were chosen from, by the figure that decided; the chosen one is in bold."""
    metric = next(key for key in rows[0] if key not in ("stage", "chosen"))
    table = Table()
    table.add_column("chosen from")
    table.add_column(_column(metric), justify="right")
    for row in rows:
        table.add_row(row["stage"], _figure(metric, row[metric]), style="bold" if row["chosen"] else "")
    return table


def summary_table(rows: Rows) -> Table:
    """Means with standard deviations, one line for each group of models."""
    metrics = [key for key in rows[0] if f"{key} ±" in rows[0]]
    table = Table(title="mean ± standard deviation over seeds", title_justify="left", title_style="bold")
    table.add_column("models", overflow="fold")
    table.add_column("seeds", justify="right")
    for metric in metrics:
        table.add_column(_column(metric), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["group"], str(row["models"]), *(_cell(metric, row) for metric in metrics))
    return table


def scaling_table(rows: Rows) -> Table:
    """Accuracies in percent by network, images and compute; with repeats, and their standard deviation."""
    kinds = {kind: title for kind, title in SCALING.items() if any(row[kind] is not None for row in rows)}
    repeats = any(row["models"] > 1 for row in rows)
    title = "mean ± standard deviation over repeats" if repeats else None
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("network", overflow="fold")
    for heading in ("images", "images\nseen", "exaFLOPs", *kinds.values(), *(["models"] if repeats else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        known = [_known(row["train_images"], ",d"), _known(row["images_seen"], ",d"), _known(row["exaflops"], ".3g")]
        shown = [_with_deviation(row[kind], row[f"{kind}_deviation"]) for kind in kinds]
        table.add_row(row["network"], *known, *shown, *([str(row["models"])] if repeats else []))
    return table


SCALING = {"finetuned": "fine-tuned\naccuracy, %", "fewshot": "few-shot\naccuracy, %"}
TABLES = {"choice": choice_table, "summary": summary_table, "scaling": scaling_table}


def _known(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)


def _with_deviation(mean: float | None, deviation: float | None) -> str:
    return _known(mean, ".2%").removesuffix("%") + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _cell(metric: str, row: Mapping[str, Any]) -> str:
    shown, deviation = _figure(metric, row[metric]), row[f"{metric} ±"]
    if deviation is None:
        return shown
    # To as many decimals as the mean.
    scale = 100 if PERCENT.search(metric) else 1
    return f"{shown} ± {scale * deviation:.{len(shown.partition('.')[2])}f}"


def _column(metric: str) -> str:
    return metric.replace("/", "\n") + (", %" if PERCENT.search(metric) else "")


def _figure(metric: str, value: float) -> str:
    return f"{100 * value:.2f}" if PERCENT.search(metric) else f"{value:.4g}"
