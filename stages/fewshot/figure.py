"""Accuracy against shots, drawn."""

from __future__ import annotations

from typing import Any

from stages.rendered import png_bytes

STYLES = {
    # Colours that people with any kind of colour vision tell apart (Okabe and Ito).
    "features": ("#0072B2", "o", "pretrained"),
    "untrained": ("#D55E00", "s", "untrained"),
    "pixels": ("#009E73", "^", "raw pixels"),
}
MOST_COLUMNS = 3
"""Panels beside each other that a page has room for."""
LINES = {"least_squares": ("-", ""), "neighbours": ("--", ", neighbours"), "linear_probe": (":", ", linear probe")}


def accuracy_figure(rows: list[dict[str, Any]]) -> bytes:
    """A PNG with one panel per data set and set of classes; bars are one standard error each way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wanted = list(dict.fromkeys((row["data"], row["class_set"]) for row in rows))
    several = len({data for data, _ in wanted}) > 1
    columns = min(MOST_COLUMNS, len(wanted))
    lines = -(-len(wanted) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * lines), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    every = figure.subplots(lines, columns, squeeze=False, sharey=True)
    panels = every.flat[: len(wanted)]
    for empty in every.flat[len(wanted) :]:
        empty.set_axis_off()
    shots = sorted({row["shots"] for row in rows})
    for panel, (data, class_set) in zip(panels, wanted, strict=True):
        _draw(panel, [row for row in rows if (row["data"], row["class_set"]) == (data, class_set)])
        panel.set_xscale("log")
        panel.set_xticks(shots, [str(count) for count in shots])
        panel.minorticks_off()
        panel.set_title(f"{data + ', ' if several else ''}{class_set.replace('_', '-')} classes")
        panel.set_xlabel("images per class")
        panel.grid(alpha=0.25)
    for first in every[:, 0]:
        first.set_ylabel("test accuracy (%)")
    panels[-1].legend(frameon=False, loc="lower right")
    return png_bytes(figure)


def _draw(panel: Any, rows: list[dict[str, Any]]) -> None:
    for kind, (colour, marker, label) in STYLES.items():
        for classifier, (line, suffix) in LINES.items():
            points = [row for row in rows if row["features"] == kind and row["classifier"] == classifier]
            if points:
                panel.errorbar(
                    [row["shots"] for row in points],
                    [100 * row["accuracy"] for row in points],
                    yerr=[100 * row["standard_error"] for row in points],
                    color=colour,
                    marker=marker,
                    linestyle=line,
                    capsize=3,
                    label=label + suffix,
                )
