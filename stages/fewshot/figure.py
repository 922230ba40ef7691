"""Accuracy against shots, drawn."""

from __future__ import annotations

import io
from typing import Any

STYLES = {
    # Colours that people with any kind of colour vision tell apart (Okabe and Ito).
    "features": ("#0072B2", "o", "pretrained"),
    "untrained": ("#D55E00", "s", "untrained"),
    "pixels": ("#009E73", "^", "raw pixels"),
}


def accuracy_figure(rows: list[dict[str, Any]]) -> bytes:
    """A PNG with one panel per set of classes; bars are one standard error each way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class_sets = list(dict.fromkeys(row["class_set"] for row in rows))
    figure = Figure(figsize=(4.2 * len(class_sets), 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(class_sets), squeeze=False, sharey=True)[0]
    shots = sorted({row["shots"] for row in rows})
    for panel, class_set in zip(panels, class_sets, strict=True):
        for kind, (colour, marker, label) in STYLES.items():
            line = [row for row in rows if row["class_set"] == class_set and row["features"] == kind]
            if line:
                panel.errorbar(
                    [row["shots"] for row in line],
                    [100 * row["accuracy"] for row in line],
                    yerr=[100 * row["standard_error"] for row in line],
                    color=colour,
                    marker=marker,
                    capsize=3,
                    label=label,
                )
        panel.set_xscale("log")
        panel.set_xticks(shots, [str(count) for count in shots])
        panel.minorticks_off()
        panel.set_title(f"{class_set.replace('_', '-')} classes")
        panel.set_xlabel("images per class")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("test accuracy (%)")
    panels[-1].legend(frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
