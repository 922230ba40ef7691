"""What `preflight` has found, as a list and a table of the machines."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.preflight import Preflight
from pipeline.preflight_collectives import links
from pipeline.preflight_comparison import Finding
from pipeline.preflight_survey import Surveyed

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


def preflight_report(found: Preflight) -> Group:
    """The findings, worst last, after a line for each machine."""
    shown: list[RenderableType] = []
    if found.surveyed is not None and found.surveyed.machines:
        shown.append(_machines(found.surveyed))
    shown.append(findings_table(sorted(found.findings, key=lambda finding: list(MARKS).index(finding.level))))
    verdict = ("fit for training", "green") if found.fit else ("not fit for training", "red")
    return Group(*shown, Text(), Text(*verdict))


def findings_table(findings: Iterable[Finding]) -> Table:
    """A line for each finding: its mark, what was checked, and what it means."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.level]
        grid.add_row(Text(mark, style=style), Text(finding.check, style="dim"), Text(finding.told))
    return grid


def _machines(found: Surveyed) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("machine")
    for name in (
        "cores",
        "memory\nGB",
        "disk\nGB",
        "/dev/shm\nGB",
        "written\nMB/s",
        "read\nMB/s",
        "clock\nms",
        "ranks",
    ):
        table.add_column(name, justify="right")
    linked = links(found.ranks)
    if linked:
        table.add_column("link\nGB/s", justify="right")
    for address, machine in found.machines.items():
        own = [rank for rank in found.ranks if rank.host == machine.host]
        pair = linked.get(machine.host)
        cells = [
            str(machine.cores),
            "?" if machine.memory is None else f"{machine.memory / 1e9:.0f}",
            "–" if machine.cache_free is None else f"{machine.cache_free / 1e9:.0f}",
            f"{machine.shared_memory / 1e9:.0f}",
            *(f"{rate / 1e6:,.0f}" for rate in (machine.written, machine.read)),
            f"{1000 * found.clocks.get(address, (0.0, 0.0))[0]:+.0f}",
            str(len(own) or "–"),
        ]
        table.add_row(address, *cells, *([f"{pair:.3g}" if pair is not None else "–"] if linked else []))
    return table
