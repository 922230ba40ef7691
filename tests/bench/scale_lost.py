"""The tables of docs/scale.md of what failing machines cost: by formula, and simulated."""

from __future__ import annotations

from statistics import mean

from pipeline.words import duration
from stages.training.config import TrainingConfig
from stages.training.interval import best_interval, daly, goodput, young
from tests.bench.scale_cases import MACHINE_MTBF_HOURS, PAPER, Run
from tests.bench.scale_failures import Cluster, simulate
from tests.bench.scale_markdown import table

HOURS = (MACHINE_MTBF_HOURS, 1000.0, 100.0)
"""Between two failures of a machine."""
LOST_AT = {"10 s": 10.0, "1 min": 60.0, "5 min": 300.0, "15 min": 900.0, "1 h": 3600.0}
"""Seconds between checkpoints."""
SEEDS = range(4)
DAYS = 54.0


def intervals() -> str:
    """The best interval between checkpoints: by simulation, by formula, and by Young's and Daly's."""
    rows = []
    for own in PAPER:
        for hours in HOURS:
            failures = own.failures(hours)
            best, default = best_interval(failures), TrainingConfig(updates=1).save_every * own.update_seconds
            rows.append(
                (
                    f"{own.title}, {own.gpus:,} GPUs" if hours == HOURS[0] else "",
                    f"{hours:,.0f}",
                    duration(failures.between),
                    f"{failures.upload:.1f}",
                    f"{young(failures.copy, failures.between):.0f}",
                    f"{daly(failures.copy, failures.between):.0f}",
                    f"{best:.0f}",
                    f"{1 - goodput(best, failures):.2%}",
                    f"{1 - simulated(own, hours, best):.2%}",
                    f"{default:.0f}",
                    f"{1 - goodput(default, failures):.2%}",
                )
            )
    head = (
        "", "h of a machine", "of the run", "s to store", "Young, s", "Daly, s", "best, s", "lost", "simulated",
        "default, s", "lost",
    )  # fmt: skip
    return table(head, rows)


def lost() -> str:
    """What is lost by the interval, of the three runs, by how often machines fail."""
    rows = []
    for own in PAPER:
        for hours in HOURS:
            shares = [f"{1 - goodput(seconds, own.failures(hours)):.1%}" for seconds in LOST_AT.values()]
            rows.append((f"{own.title}, {own.gpus:,} GPUs" if hours == HOURS[0] else "", f"{hours:,.0f}", *shares))
    return table(("", "h of a machine", *LOST_AT), rows)


def simulated(own: Run, hours: float, interval: float, spares: int = 0, replaced: float = 0.0) -> float:
    """Goodput in the mean over the seeds."""
    cluster = Cluster(machines=own.machines, mtbf=hours * 3600, spares=spares, replaced=replaced)
    found = (simulate(cluster, interval, own.failures(hours), days=DAYS, seed=seed) for seed in SEEDS)
    return mean(spent.goodput for spent in found)


def spares() -> str:
    """The largest run, with and without machines that wait."""
    own, rows = PAPER[-1], []
    for name, count, replaced in (
        ("another machine at once", 0, 0.0),
        ("another machine after ten minutes", 0, 600.0),
        ("repaired within a day, no spare one", 0, 86400.0),
        ("the same, one spare", 1, 86400.0),
        ("two", 2, 86400.0),
        ("four", 4, 86400.0),
    ):
        lost = [1 - simulated(own, hours, 60.0, count, replaced) for hours in HOURS]
        rows.append((name, *(f"{part:.1%}" for part in lost)))
    return table(("", *(f"{hours:,.0f} h" for hours in HOURS)), rows)
