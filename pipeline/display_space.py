"""Tables of what roots take up."""

from __future__ import annotations

from datetime import datetime

from rich.table import Table

from cluster.sizes import size
from pipeline.quotas import RootSpace
from pipeline.space import Space

STYLES = {"over": "red", "near": "yellow", "ok": ""}


def space_table(space: Space) -> Table:
    """Bytes and objects by what they are, the whole, and what `gc` would free of it."""
    table = _table("what it is")
    for kind, amount in space.by_kind.items():
        table.add_row(kind, size(amount.bytes), f"{amount.objects:,}")
    table.add_section()
    table.add_row("all", size(space.total.bytes), f"{space.total.objects:,}", style="bold")
    table.add_row("of it, `patchline gc` would free", size(space.garbage.bytes), f"{space.garbage.objects:,}")
    return table


def stages_table(space: Space) -> Table:
    """The largest stages, and who uses them."""
    table = _table("largest stages")
    table.add_column("used by", overflow="fold")
    for stage in space.stages:
        used = ", ".join(stage.workflows) or "no workflow"
        table.add_row(stage.folder, size(stage.amount.bytes), f"{stage.amount.objects:,}", used)
    return table


def roots_table(rows: list[RootSpace]) -> Table:
    """One line for each root, with its share of its quota."""
    table = _table("root")
    for heading in ("quota", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("last active", no_wrap=True)
    for row in rows:
        quota = size(row.quota) if row.quota is not None else "–"
        share = f"{row.share:.0%}{f', {row.state}' if row.state != 'ok' else ''}" if row.share is not None else "–"
        figures = (size(row.amount.bytes), f"{row.amount.objects:,}", quota, share)
        table.add_row(row.folder or ".", *figures, _moment(row.active_ms), style=STYLES[row.state])
    return table


def _table(first: str) -> Table:
    table = Table()
    table.add_column(first, overflow="fold")
    for heading in ("bytes", "objects"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _moment(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "never"
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
