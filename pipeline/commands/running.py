"""Going on with workflows that were started, stopping them, and making stages anew."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.commands.base import Address, AsJson, Mlflow, Name, Root, Since, WorkflowId, console
from pipeline.commands.following import end_here, follow_to_end, shown_here
from pipeline.commands.shown import (
    match,
    print_json,
    print_note,
    program,
    told_beside,
)
from pipeline.settings import Settings, resolve
from pipeline.words import duration, seconds_of

app = typer.Typer()


@app.command()
def resume(
    workflow_id: WorkflowId = None,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    foreground: Annotated[bool, typer.Option(help="run in this process, without a Ray cluster")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="show progress until the end")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue a failed, killed or cancelled workflow from its records and its last committed checkpoint.

    Example: `patchline resume digits-20260131-101500-1a2b`
    """
    from pipeline.api import resume as resume_workflow
    from pipeline.status import holder

    settings = resolve(root=root, mlflow=mlflow, address=address)
    storage, known = settings.storage(), match(workflow_id, settings)
    if (owner := holder(storage, known)) is not None:
        print_note(f"{known} is held by {owner}: going on when that driver ends, or is silent for its lease")
    with shown_here(known, settings, as_json=as_json) if foreground else told_beside(as_json):
        found, state = resume_workflow(known, settings, foreground=foreground)
    if as_json:
        print_json({"id": found, "state": state}, line=follow)
    else:
        console.print(found)
    if foreground and as_json:
        raise typer.Exit(0 if state == "done" else 1)
    if foreground:
        end_here(found, state, settings)
    if follow:
        raise typer.Exit(follow_to_end(found, settings, as_json=as_json))


@app.command("resume-all")
def resume_all(
    state: Annotated[
        list[str] | None,
        typer.Option(help="failed, silent, stopped or submitted; repeatable; failed and silent if absent"),
    ] = None,
    name: Name = None,
    since: Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list them, and submit nothing")] = False,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Resume every workflow that has failed, or whose driver is gone, and print their ids.

    Exit code 1 where one could not be submitted. Example: `patchline resume-all --state silent --since 2d --dry-run`
    """
    from pipeline.again import DEFAULT
    from pipeline.again import resume_all as resume_workflows

    settings = resolve(root=root, mlflow=mlflow, address=address)
    seconds = seconds_of(since, "--since") if since is not None else None
    found = resume_workflows(settings, states=state or DEFAULT, name=name, seconds=seconds, dry_run=dry_run)
    if as_json:
        print_json([asdict(item) for item in found])
    for item in [] if as_json else found:
        console.print(f"{item.state:10} {item.id}  {item.problem}".rstrip(), soft_wrap=True, markup=False)
    if not found:
        print_note("none: `patchline list` shows what there is")
    raise typer.Exit(1 if any(item.problem for item in found) else 0)


@app.command()
def cancel(
    workflow_id: WorkflowId = None,
    now: Annotated[bool, typer.Option("--now", help="end at once, without a checkpoint")] = False,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Ask a workflow to save a checkpoint and stop; with `--now` end it at once. `resume` continues it.

    Example: `patchline cancel digits-20260131-101500-1a2b`
    """
    settings = resolve(root=root, mlflow=mlflow, address=address)
    if now:
        _cancel_now(workflow_id, settings, as_json=as_json)
        return
    from pipeline.api import cancel as cancel_workflow
    from pipeline.status import silence

    found = cancel_workflow(workflow_id, settings)
    if as_json:
        print_json({"id": found, "now": False})
        return
    console.print(f"{found} will stop after a checkpoint; `{program()} resume {found}` continues it", soft_wrap=True)
    if (seconds := silence(settings.storage(), found)) is not None:
        print_note(f"its driver has been silent for {duration(seconds)}: `{program()} cancel --now {found}` ends it")


def _cancel_now(workflow_id: str | None, settings: Settings, *, as_json: bool) -> None:
    from pipeline.cancelling import cancel_now

    found = cancel_now(workflow_id, settings)
    if as_json:
        print_json({"now": True, **asdict(found)})
    else:
        console.print(f"{found.id} is stopped; `{program()} resume {found.id}` continues it", soft_wrap=True)
    if found.problem:
        print_note(
            f"its Ray jobs were not told ({found.problem}): its driver ends by itself when it next renews its lease; "
            "a job that has not begun may still begin"
        )


@app.command()
def retry(
    workflow_id: WorkflowId = None,
    stage: Annotated[str, typer.Option("--from", metavar="STAGE", help="stage to begin with")] = ...,  # type: ignore[assignment]
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    foreground: Annotated[bool, typer.Option(help="run in this process, without a Ray cluster")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="show progress until the end")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a stage that has ended anew, from its beginning, and all that depends on it.

    Example: `patchline retry digits-20260131-101500-1a2b --from finetune`
    """
    from pipeline.again import retry as retry_stage

    settings = resolve(root=root, mlflow=mlflow, address=address)
    known = match(workflow_id, settings)
    with shown_here(known, settings, as_json=as_json) if foreground else told_beside(as_json):
        found = retry_stage(known, stage, settings, foreground=foreground)
    if as_json:
        print_json(asdict(found), line=follow)
    else:
        console.print(f"{found.id}: made anew: {', '.join(found.stages)}", soft_wrap=True)
    if foreground and not as_json:
        end_here(found.id, found.state, settings)
    if follow and not foreground:
        raise typer.Exit(follow_to_end(found.id, settings, as_json=as_json))
    raise typer.Exit(0 if found.state in ("submitted", "done") else 1)
