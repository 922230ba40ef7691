"""What roots take up."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from cluster.sizes import size
from pipeline.commands.base import AsJson, Root, console
from pipeline.commands.shown import print_json, print_note
from pipeline.settings import resolve

if TYPE_CHECKING:
    from pipeline.quotas import RootSpace

app = typer.Typer()


@app.command()
def du(
    under: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="s3://bucket/prefix: one line for each root below it")
    ] = None,
    quotas: Annotated[
        Path | None, typer.Option(metavar="FILE", help="quotas of these roots; PREFIX/QUOTAS.yaml if absent")
    ] = None,
    largest: Annotated[int, typer.Option(min=0, help="how many of a root's stages are shown")] = 10,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show what a root takes up, or each root below a prefix beside its quota. Exit code 1 where one is over it.

    Example: `patchline du --under s3://lab-vit/users`
    """
    if under is None:
        if quotas is not None:
            raise UserError(f"--quotas {quotas}: these are for roots below a prefix: add --under s3://BUCKET/PREFIX")
        _print_space(root, largest, as_json=as_json)
        return
    from pipeline.quotas import read_quotas, roots_under

    if root is not None:
        raise UserError(f"--root {root} and --under {under}: give one of them")
    storage = resolve(root=under.rstrip("/")).storage()
    rows = roots_under(storage, read_quotas(storage, quotas))
    _print_roots(rows, as_json=as_json)
    raise typer.Exit(1 if any(row.state == "over" for row in rows) else 0)


def _print_space(root: str | None, largest: int, *, as_json: bool) -> None:
    from pipeline.display_space import space_table, stages_table
    from pipeline.space import space

    found = space(resolve(root=root).storage(), largest=largest)
    if as_json:
        print_json(asdict(found))
        return
    console.print(space_table(found))
    if found.stages:
        console.print(stages_table(found))


def _print_roots(rows: list[RootSpace], *, as_json: bool) -> None:
    from pipeline.display_space import roots_table

    if as_json:
        print_json([{**asdict(row), "share": row.share, "state": row.state} for row in rows])
        return
    console.print(roots_table(rows))
    for row in rows:
        if row.inside is not None:
            print_note(
                f"! {row.folder} lies in another root, {row.inside or 'the prefix itself'}: give each its own folder"
            )
        if row.state == "over" and row.quota is not None:
            over = size(row.amount.bytes - row.quota)
            print_note(
                f"✗ {row.folder or 'the prefix'} is {over} over its quota: `patchline gc`, `patchline delete ID`"
            )
