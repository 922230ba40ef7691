"""The table of `bench-data`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.feeding import Fit, Machine
from pipeline.words import size


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
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("")
    for machine in fit.machines:
        table.add_column(f"{machine.name}, images/s", justify="right")
    table.add_column("", style="dim")
    slowest = fit.slowest
    for name, rate, note in _rows(slowest):
        rates = [f"{dict(_rates(machine))[rate]:,.0f}" for machine in fit.machines]
        slow = rate == slowest.limit
        table.add_row(f"▶ {name}" if slow else f"  {name}", *rates, note, style="bold" if slow else "")
    return table


def _rates(machine: Machine) -> Iterable[tuple[str, float]]:
    yield from (("storage", machine.storage), ("one thread", machine.one_thread), ("decoding", machine.decoding))
    yield "hand-over", machine.hand_over


def _rows(machine: Machine) -> Iterable[tuple[str, str, str]]:
    """Name, rate and note of each line."""
    made = "native helper" if machine.native else "without the native helper"
    each = f" each of {machine.loaders} loaders" if machine.loaders > 1 else ""
    yield "from storage", "storage", f"{machine.storage * machine.image_bytes / 1e6:,.0f} MB/s, into an empty cache"
    yield "decoding, 1 thread", "one thread", made
    threads = f"decoding, {machine.threads} thread{'s' if machine.threads != 1 else ''}"
    yield threads, "decoding", f"{each.strip() + ', ' if each else ''}{machine.cores} cores"
    yield "hand-over", "hand-over", "batches that nobody fills"


def _verdict(fit: Fit) -> Iterable[Text]:
    machine, wanted = fit.slowest, fit.wanted
    first = f", {machine.first_epoch:,.0f} in the first epoch" if machine.first_epoch < machine.feeds else ""
    yield Text(f"feeds {machine.feeds:,.0f} images/s from the cache{first}: {machine.limit} is the limit")
    if wanted is None:
        unknown = "what training asks for is not known: --on h100x8 estimates it, --images-per-s states it"
        yield Text(unknown, style="dim")
        return
    each = "" if wanted.loaders == 1 else f" for each of {wanted.loaders} ranks"
    asked = Text(f"training asks for {wanted.images_per_s:,.0f} images/s a machine: {wanted.source}")
    threads = Text(f"that takes {wanted.threads} thread{'s' if wanted.threads != 1 else ''}{each} as fast as one here")
    style, word = ("green", "✓ enough") if fit.enough else ("red", "✗ not enough")
    yield from (asked, threads, Text(word, style=style))
