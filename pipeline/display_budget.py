"""The table of `plan --budget`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.budget import Choice
from pipeline.display_estimate import days


def budget_table(stage: str, exaflops: float, found: Sequence[Choice], *, price: float | None) -> Group:
    """What a budget buys, the most promising first, and how to choose it."""
    title = Text.assemble((stage, "bold"), f": what {exaflops:,.10g} exaFLOPs buy of each model")
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for name in ("model", "parameters", "GMACs", "updates", "images"):
        table.add_column(name, justify="left" if name == "model" else "right")
    epochs = found[0].epochs is not None
    if epochs:
        table.add_column("epochs", justify="right")
    table.add_column("ImageNet error", justify="right")
    if found[0].estimate is not None:
        table.add_column("time", justify="right")
        if price is not None:
            table.add_column("money", justify="right")
        table.add_column("fits")
    for place, choice in enumerate(found):
        table.add_row(*_cells(choice, epochs=epochs), style="bold" if place == 0 else "")
    best = " ".join(f"-o {item}" for item in found[0].overrides(stage))
    notes = [
        "error in %, by a law fitted to the paper's Table 6 (JFT-300M, fine-tuned at a higher resolution); "
        "~ outside of what it was fitted to",
    ]
    if found[0].masked:
        notes.append(
            "it is a law of pretraining on class labels: masked patch prediction comes out worse (of B/16, by 4 points "
            "in the paper), and that the order is the same is an assumption"
        )
    if epochs and any(choice.epochs is not None and choice.epochs > 10 for choice in found):
        notes.append(
            "seeing the same images again is worth less than new ones: where epochs are many, it promises too much"
        )
    return Group(title, table, *(Text(note, style="dim") for note in notes), Text(f"\nthe first one: {best}"))


def _cells(choice: Choice, *, epochs: bool) -> list[str | Text]:
    about = "~ " if choice.extrapolated else ""
    cells: list[str | Text] = [
        choice.name, f"{choice.parameters / 1e6:,.0f} M", f"{choice.macs / 1e9:,.1f}", f"{choice.updates:,}",
        f"{choice.images / 1e6:,.1f} M",
    ]  # fmt: skip
    if epochs:
        cells.append(f"{choice.epochs or 0:,.1f}")
    cells.append(f"{about}{choice.error:.1f}")
    if choice.estimate is not None:
        cells.append(days(choice.estimate.days))
        if choice.estimate.money is not None:
            cells.append(f"{choice.estimate.money:,.0f}")
        fits = choice.estimate.chosen.fits
        cells.append(Text("✓ yes", style="green") if fits else Text("✗ no", style="red"))
    return cells
