"""Removing what is not wanted any more, and proving what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from cluster.sizes import size
from pipeline.commands.base import Address, AsJson, Mlflow, Root, console, inside_job
from pipeline.commands.shown import match, print_json, told_beside
from pipeline.settings import Settings, resolve
from pipeline.words import seconds_of

if TYPE_CHECKING:
    from pipeline.comparison import Verified
    from pipeline.removal import Removed

app = typer.Typer()

DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be removed, and change nothing")]


@app.command()
def delete(
    workflow_id: Annotated[str, typer.Argument(metavar="ID", help="id, or its beginning")],
    dry_run: DryRun = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Remove a workflow: its file, events and logs, and those of its stages that no other workflow uses.

    Example: `patchline delete digits-20260131-101500-1a2b --dry-run`
    """
    from pipeline.removal import delete as delete_workflow

    _print_removed(delete_workflow(workflow_id, resolve(root=root), dry_run=dry_run), dry_run=dry_run, as_json=as_json)


@app.command()
def gc(
    older_than: Annotated[str, typer.Option(metavar="TIME", help="only what has not changed for so long")] = "7d",
    dry_run: DryRun = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Remove garbage of a whole root: what nothing reaches, and stages that no workflow names.

    Example: `patchline gc --older-than 14d --dry-run`
    """
    from pipeline.collection import collect_root

    seconds = seconds_of(older_than, "--older-than")
    found = collect_root(resolve(root=root).storage(), older_than=seconds, dry_run=dry_run)
    _print_removed(found, dry_run=dry_run, as_json=as_json)


def _print_removed(found: Sequence[Removed], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": dry_run, "removed": [asdict(item) for item in found]})
        return
    for item in found:
        told = f"stays: {item.kept}" if item.kept else f"{item.objects} objects, {size(item.bytes)}"
        console.print(f"{item.what}  {told}", soft_wrap=True, markup=False)
    gone = [item for item in found if not item.kept]
    total = f"{sum(item.objects for item in gone)} objects, {size(sum(item.bytes for item in gone))}"
    console.print(f"{'would remove' if dry_run else 'removed'} {total}")


@app.command()
def verify(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="a finished stage that trains")],
    workflow_id: Annotated[str | None, typer.Option("--workflow", help="id; the newest if absent")] = None,
    from_update: Annotated[
        int | None, typer.Option(min=0, help="kept checkpoint to begin at, 0 for the start; the last window if absent")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="workers on the Ray cluster; 0 runs in this process")] = 0,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Train from a kept checkpoint to the next one again, and prove that the same comes out. Exit code 1 where not.

    Example: `patchline verify pretrain --workflow digits-20260131 --from-update 400`
    """
    settings = resolve(root=root, mlflow=mlflow, address=address)
    found = match(workflow_id, settings)
    if workers and not inside_job(address):
        from pipeline.verification_job import verify_on_cluster

        result = verify_on_cluster(settings, found, stage, workers=workers, start=from_update)
    else:
        result = _verify_here(found, settings, stage, from_update, workers, as_json=as_json)
    if as_json:
        print_json({**asdict(result), "exact": result.exact})
    else:
        _print_verified(result)
    raise typer.Exit(1 if result.problems else 0)


def _verify_here(
    workflow_id: str, settings: Settings, stage: str, start: int | None, workers: int, *, as_json: bool
) -> Verified:
    from pipeline.driver import read_workflow
    from pipeline.verification import verify as verify_stage
    from stages.training.manifest import Damaged

    storage = settings.storage()
    workflow = read_workflow(storage, workflow_id)
    report = (lambda line: None) if as_json else console.print
    try:
        with told_beside(as_json):
            return verify_stage(storage, workflow_id, workflow, stage, start=start, workers=workers, report=report)
    except Damaged as error:
        raise UserError(f"{error}: `patchline audit {workflow_id}` finds what else is") from None


def _print_verified(result: Verified) -> None:
    for problem in result.problems:
        console.print(f"✗ {problem}", style="red", markup=False, soft_wrap=True)
    if result.differs:
        console.print(f"not bit-exact: {', '.join(result.differs)}", style="yellow", markup=False, soft_wrap=True)
    if not result.problems:
        how = "bit for bit" if result.exact else f"within {max(result.loss_difference, result.weight_difference):.2g}"
        console.print(f"✓ updates {result.start + 1} to {result.end}: {result.losses} losses, cursor, weights: {how}")
