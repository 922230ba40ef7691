"""The table of `bench-data`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.sizes import size
from pipeline.feeding import Fit, Machine
from stages.data.bound import thread_count


def feeding_report(fit: Fit) -> Group:
    """What each part brings, what training asks for, and what to do where that is more."""
    shown: list[RenderableType] = [_heading(fit), _table(fit), *_verdict(fit)]
    shown += [Text(f"! {line}", style="yellow") for line in fit.advice()]
    return Group(*shown)


def _heading(fit: Fit) -> Text:
    machine = fit.slowest
    return Text.assemble(
        (fit.stage, "bold"),
        f": {fit.network}, {fit.images:,} images of {size(round(machine.image_bytes))}, in {fit.root}",
    )


def _table(fit: Fit) -> Table:
    slowest, count = fit.slowest, len(fit.machines)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("")
    table.add_column(f"{slowest.name if count == 1 else f'the slowest of {count}'}\nimages/s", justify="right")
    if count > 1:
        table.add_column("median\nimages/s", justify="right")
    table.add_column("", style="dim")
    for name, rate, note in _rows(slowest):
        own = [_rate(machine, rate) for machine in fit.machines]
        rates = [min(own), *([statistics.median(own)] if count > 1 else [])]
        slow = rate == slowest.limit
        shown = (f"{each:,.0f}" for each in rates)
        table.add_row(f"▶ {name}" if slow else f"  {name}", *shown, note, style="bold" if slow else "")
    return table


def _rate(machine: Machine, name: str) -> float:
    return machine.one_thread if name == "one thread" else machine.rate(name)


def _rows(machine: Machine) -> Iterable[tuple[str, str, str]]:
    """Name, rate and note of each line."""
    made = "native helper" if machine.native else "without the native helper"
    how = "into an empty cache" if machine.cached else "in every epoch"
    yield "from storage", "storage", f"{machine.storage * machine.image_bytes / 1e6:,.0f} MB/s, {how}"
    yield "decoding, 1 thread", "one thread", made
    each = f"for each of {machine.loaders} ranks, " if machine.loaders > 1 else ""
    yield f"decoding, {thread_count(machine.threads)}", "decoding", f"{each}{machine.cores} cores"
    yield "hand-over", "hand-over", "batches that nobody fills" + (", to the GPU" if machine.copied else "")


def _verdict(fit: Fit) -> Iterable[Text]:
    machine, wanted = fit.slowest, fit.wanted
    first = f", {machine.first_epoch:,.0f} in the first epoch" if machine.first_epoch < machine.feeds else ""
    source = " from the cache" if machine.cached else ""
    yield Text(f"feeds {machine.feeds:,.0f} images/s{source}{first}: {machine.limit} is the limit")
    if wanted is None:
        unknown = "what training asks for is not known: --on h100x8 estimates it, --images-per-s states it"
        yield Text(unknown, style="dim")
        return
    each = "" if wanted.loaders == 1 else f" for each of {wanted.loaders} ranks"
    asked = Text(f"training asks for {wanted.images_per_s:,.0f} images/s a machine: {wanted.source}")
    threads = Text(f"that takes {thread_count(wanted.threads)}{each} as fast as one here")
    style, word = ("green", "✓ enough") if fit.enough else ("red", "✗ not enough")
    yield from (asked, threads, Text(word, style=style))
