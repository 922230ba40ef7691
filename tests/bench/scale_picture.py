"""The picture of docs/scale.md: what a large run loses, by how often it saves and how often its machines fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.training.interval import best_interval, goodput
from tests.bench.scale_cases import PAPER
from tests.bench.scale_lost import HOURS, simulated

COLOURS = ("#1b6e53", "#c77d0a", "#a8323e")
SECONDS = np.geomspace(3, 7200, 200)
SIMULATED = (5.0, 15.0, 60.0, 300.0, 1200.0, 3600.0)
TICKS = {3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min", 300: "5 min", 900: "15 min", 3600: "1 h", 7200: "2 h"}


def draw(path: Path) -> Path:
    """Write the picture; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    own = PAPER[-1]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panel = figure.add_subplot()
    for hours, colour in zip(HOURS, COLOURS, strict=True):
        failures = own.failures(hours)
        label = f"a machine fails once in {hours:,.0f} h"
        panel.plot(SECONDS, [1 - goodput(each, failures) for each in SECONDS], color=colour, linewidth=2, label=label)
        dots = [max(1 - simulated(own, hours, each), 1e-4) for each in SIMULATED]
        panel.plot(SIMULATED, dots, "o", color=colour, markersize=5, markeredgecolor="white")
        best = best_interval(failures)
        panel.plot([best], [1 - goodput(best, failures)], "v", color=colour, markersize=10, markeredgecolor="white")
    panel.axvline(failures.upload, color="#888888", linewidth=1, linestyle=":")
    panel.text(failures.upload * 1.06, 0.7, "to store one", color="#666666", fontsize=9)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(5e-4, 1)
    panel.set_xlim(SECONDS[0], SECONDS[-1])
    panel.set_xticks(list(TICKS), list(TICKS.values()))
    panel.set_yticks([0.001, 0.01, 0.1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    panel.minorticks_off()
    panel.set_xlabel("training between two checkpoints")
    panel.set_ylabel("of the time lost")
    panel.set_title(f"{own.title} on {own.gpus:,} GPUs: curves by formula, dots simulated, ▼ the best", fontsize=11)
    panel.grid(color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.legend(frameon=False, loc="upper center")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
    return path
