"""An evaluation's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.evaluate.tally import Tally
from stages.rendered import png_bytes

BLUE, ORANGE = "#0072B2", "#D55E00"
MOST_NUMBERED = 12
"""Classes whose shares have room for their numbers at the width of a page; of more, colours alone."""


def calibration_figure(rows: list[dict[str, Any]], error: float) -> bytes:
    """A PNG: accuracy against confidence, and how many images there are of each."""
    figure, (panel, counts) = _figure((5.2, 5.6), 2, heights=(3, 1))
    width = rows[0]["up_to"] - rows[0]["above"]
    middles = [(row["above"] + row["up_to"]) / 2 for row in rows]
    panel.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="as sure as right")
    panel.bar(middles, [row["accuracy"] or 0 for row in rows], width=width * 0.92, color=BLUE)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_ylabel("accuracy")
    panel.set_title(f"calibration error {100 * error:.2f} %")
    panel.legend(frameon=False, loc="upper left")
    counts.bar(middles, [row["images"] for row in rows], width=width * 0.92, color=ORANGE)
    counts.set_xlim(0, 1)
    counts.set_xlabel("confidence of the best-scored class")
    counts.set_ylabel("images")
    return png_bytes(figure)


def confusion_figure(tally: Tally, names: Sequence[str]) -> bytes:
    """A PNG: the part of each class's images that was taken for each class, in %."""
    counts = np.zeros((len(names), len(names)))
    for (truth, predicted), count in tally.pairs.items():
        counts[truth, predicted] = count
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(names) <= MOST_NUMBERED
    side = max(4.5, 1.6 + 0.48 * len(names)) if numbered else 7.2
    figure, (panel,) = _figure((side + 0.6, side), 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    places = range(len(names))
    small = None if numbered else min(8.0, 270 / len(names))
    panel.set_xticks(places, names, rotation=45 if numbered else 90, ha="right" if numbered else "center", size=small)
    panel.set_yticks(places, names, size=small)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true class")
    for row in places if numbered else ():
        for column in places:
            if shares[row, column] >= 0.5:
                dark = shares[row, column] > 55
                text = f"{shares[row, column]:.0f}"
                panel.text(column, row, text, ha="center", va="center", color="white" if dark else "0.15", fontsize=8)
    return png_bytes(figure)


def _figure(size: tuple[float, float], rows: int, heights: Sequence[float] = (1,)) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 1, squeeze=False, height_ratios=heights)[:, 0]
    return figure, panels
