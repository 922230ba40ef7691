"""The tables of `plan --on`: memory, time and money of the training stages on a cluster."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster.shapes import ClusterShape
from cluster.sizes import size
from pipeline.estimate import Estimate, Row
from pipeline.estimate_failures import Losses
from pipeline.estimate_reading import FirstEpoch
from pipeline.plan import PlannedStage
from pipeline.words import duration

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers", "total")


def estimates(stages: Iterable[PlannedStage], shape: ClusterShape, *, price: float | None) -> Group:
    """One section for each training stage that would run, and the sum of them."""
    found = [(stage, stage.estimate) for stage in stages if stage.estimate is not None]
    parts: list[RenderableType] = []
    for stage, estimate in found:
        parts += [Text(), _heading(stage, shape), _memory_table(estimate, shape), Padding(_facts(estimate), (0, 1))]
        parts += [Text(f"! {warning}", style="yellow") for warning in estimate.warnings]
    if not found:
        parts.append(Text("nothing is to be trained whose size is known", style="dim"))
    if len(found) > 1:
        total = sum(estimate.days for _, estimate in found)
        money = "" if price is None else f", {total * 24 * shape.gpus * price:,.0f} in money"
        parts.append(Text(f"\ntogether {days(total)}, {total * shape.gpus:,.3g} GPU-days{money}", style="bold"))
    return Group(*parts)


def _heading(stage: PlannedStage, shape: ClusterShape) -> Text:
    nodes = f", {shape.nodes} nodes of {shape.gpus_per_node}" if shape.nodes > 1 else ""
    learned = f"{stage.work['classes']:,.0f} classes" if stage.work["classes"] else "masked patches"
    return Text.assemble(
        (stage.name, "bold"), f": {stage.network}, {learned}, on ",
        (f"{shape.gpus} × {shape.gpu.title}", "bold"), nodes,
    )  # fmt: skip


def _memory_table(estimate: Estimate, shape: ClusterShape) -> Table:
    usable = f"{estimate.usable_bytes / 1e9:.1f} of {shape.gpu.memory_gb:.0f} can be used"
    title = f"memory of a GPU at its peak, in GB; {usable}"
    # Without lines between the columns it fits terminals of 100 columns with room to spare.
    table = Table(title=title, title_justify="left", title_style="dim", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("ZeRO", justify="right")
    table.add_column("checkpointing")
    for part in PARTS:
        table.add_column(part, justify="right")
    table.add_column("fits")
    for row in estimate.rows:
        table.add_row(*_memory_cells(row), style="bold" if row.chosen else "")
    return table


def _memory_cells(row: Row) -> list[RenderableType]:
    sizes = [f"{getattr(row.memory, part) / 1e9:.2f}" for part in PARTS]
    fits = Text("✓ yes", style="green") if row.fits else Text("✗ no", style="red")
    again = "yes" if row.activation_checkpointing else "no"
    stage = f"▶ {row.zero_stage}" if row.chosen else str(row.zero_stage)
    return [stage, again, *sizes, fits]


def _facts(estimate: Estimate) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, fact in _lines(estimate):
        table.add_row(name, fact)
    return table


def _lines(estimate: Estimate) -> Iterable[tuple[str, str]]:
    steps = f" × {estimate.accumulation} micro-steps" if estimate.accumulation > 1 else ""
    yield "update", f"{estimate.micro_batch} images a pass{steps} × {estimate.gpus} GPUs"
    yield "peak at", f"the {estimate.chosen.memory.moment}"
    yield "machines", f"{estimate.host_bytes / 1e9:.1f} GB of each one's own memory"
    upload = "" if estimate.upload_seconds is None else f", stored in {duration(estimate.upload_seconds)}"
    yield "checkpoint", f"{estimate.checkpoint_bytes / 1e9:.2f} GB{upload}"
    if estimate.machines > 1:
        yield "reading", _reading(estimate)
    if estimate.first_epoch is not None:
        yield "first epoch", _first_epoch(estimate.first_epoch)
    network = "" if estimate.network_seconds is None else f", the network busy for {estimate.network_seconds:.2g} s"
    yield "speed", f"{estimate.images_per_s:,.0f} images/s, {estimate.update_seconds:.2g} s an update{network}"
    yield "efficiency", f"{estimate.efficiency:.0%} of the data sheet's rate, {estimate.efficiency_from}"
    yield "time", f"{days(estimate.days)}, {estimate.device_days:,.3g} GPU-days"
    if estimate.losses is not None:
        yield "failures", _losses(estimate.losses, estimate.update_seconds)
    if estimate.tpu_core_days:
        spent = ", ".join(f"{days:,.0f} on {data}" for data, days in estimate.tpu_core_days.items())
        yield "the paper's", f"TPUv3-core-days of Table 2: {spent}"
    if estimate.money is not None:
        yield "money", f"{estimate.money:,.2f}" if estimate.money < 100 else f"{estimate.money:,.0f}"


def _reading(estimate: Estimate) -> str:
    """What a machine's cache has to hold, so that it reads from storage once alone."""
    own = 1 / estimate.machines
    each = f"each of {estimate.machines:,} machines fetches {estimate.read_share:.1%} of the data set"
    if estimate.read_share > 1.01 * own:
        once = f"{each}, again in each epoch unless its cache holds that much"
        batch = estimate.micro_batch * estimate.accumulation * estimate.gpus
        return f"{once}; {own:.1%} with input.streams={batch} and no mixup"
    return f"{each} in each epoch"


def _first_epoch(first: FirstEpoch) -> str:
    each = f"{first.image_bytes / 1000:,.3g} kB an image, {first.image_bytes_from}"
    return (
        f"{size(int(first.fetched_bytes))} to each machine in {duration(first.fetch_seconds)}, trained on in "
        f"{duration(first.train_seconds)}; {each}"
    )


def _losses(losses: Losses, update_seconds: float) -> str:
    """What failures cost now, and at the best interval."""
    now, best = (
        f"save_every={updates} ({duration(updates * update_seconds)}) loses {part:.2%}"
        for updates, part in ((losses.save_every, losses.lost), (losses.best_save_every, losses.best_lost))
    )
    unknown = (
        "; the time to store a checkpoint is not known: --bucket-mb-per-s" if losses.upload_seconds is None else ""
    )
    return f"one in {days(losses.between_failures / 86400)}; {now}; the best, {best}{unknown}"


def days(number: float) -> str:
    """Days as people say them."""
    return f"{number:,.1f} days" if number >= 2 else duration(number * 86400)
