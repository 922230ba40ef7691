"""What workflows have done, and what they have stored."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.sizes import size
from pipeline.commands.base import AsJson, Name, Root, Since, WorkflowId, console
from pipeline.commands.following import follow_to_end
from pipeline.commands.shown import (
    match,
    of_workflow,
    print_json,
    print_note,
    print_status,
    read_status,
)
from pipeline.settings import resolve
from pipeline.words import seconds_of

app = typer.Typer()

STATES = ("submitted", "running", "silent", "done", "failed", "stopped")


@app.command()
def status(
    workflow_id: WorkflowId = None,
    root: Root = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="show it live until the workflow ends")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what has happened to a workflow, stage by stage: attempts, updates, speed, time left, work lost.

    With `-f` exit code 1 where it has not come to its end. Example: `patchline status -f`
    """
    settings = resolve(root=root)
    found = match(workflow_id, settings)
    if not follow or read_status(found, settings).state not in ("submitted", "running"):
        print_status(found, settings, as_json=as_json)
        return
    raise typer.Exit(follow_to_end(found, settings, here=False, as_json=as_json))


@app.command()
def logs(
    workflow_id: WorkflowId = None,
    stage: Annotated[str | None, typer.Option(help="the log of this stage's workers; the driver's if absent")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="of the stage; the newest if absent")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="of the stage's workers; all of them if absent")] = None,
    root: Root = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the workflow ends")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a line of JSON for each line")] = False,
) -> None:
    """Print a workflow's log, also when its cluster is gone.

    Example: `patchline logs --stage pretrain --attempt 1 --rank 0`
    """
    from pipeline.api import ask_cluster
    from pipeline.stage_logs import Wanted, log_pieces

    wanted = Wanted(stage=stage, attempt=attempt, rank=rank)
    settings = resolve(root=root)
    storage = settings.storage()
    ask = partial(ask_cluster, storage=storage, settings=settings)
    for piece in log_pieces(storage, match(workflow_id, settings), wanted, follow=follow, ask=ask):
        if not as_json:
            console.out(piece.text, end="", highlight=False)
        for line in piece.text.splitlines() if as_json else ():
            console.out(json.dumps({"process": piece.process, "line": line}), highlight=False)


@app.command("list")
def list_(
    state: Annotated[list[str] | None, typer.Option(help="only those in this state; repeatable")] = None,
    name: Name = None,
    since: Since = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """List the workflows of a root and their states, oldest first. `silent`: its driver is gone; `resume` it.

    Example: `patchline list --state failed --name digits --since 2d`
    """
    from pipeline.api import all_states

    if unknown := [item for item in state or () if item not in STATES]:
        raise UserError(f"--state {unknown[0]}: expected one of {', '.join(STATES)}")
    seconds = seconds_of(since, "--since") if since is not None else None
    found = all_states(resolve(root=root), name=name, seconds=seconds)
    chosen = {workflow_id: own for workflow_id, own in found.items() if not state or own in state}
    if as_json:
        print_json(chosen)
        return
    # At once: a call for each line would take longer than to find them.
    console.out("".join(f"{own:10} {workflow_id}\n" for workflow_id, own in chosen.items()), end="", highlight=False)


@app.command("get-output")
def get_output(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="a finished stage of the workflow")],
    to: Annotated[str | None, typer.Argument(metavar="[TO]", help="folder or address to copy the files to")] = None,
    workflow_id: Annotated[str | None, typer.Option("--workflow", help="id; the newest if absent")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show where a stage's output lies, its files and digest; with TO copy them, each one compared with the manifest.

    Example: `patchline get-output pretrain model --workflow digits-20260131`
    """
    from pipeline.outputs import copy_output
    from pipeline.outputs import get_output as describe_output
    from stages.training.manifest import Damaged

    storage, found, workflow = of_workflow(workflow_id, root)
    try:
        if to is None:
            output = describe_output(storage, found, workflow, stage)
        else:
            output = copy_output(storage, found, workflow, stage, to)
    except Damaged as error:
        raise UserError(f"{error}: `patchline audit {found}` finds what else is") from None
    if as_json:
        print_json({**asdict(output), "copied_to": to})
        return
    console.print(f"{output.address}  {output.kind}, attempt {output.attempt}", soft_wrap=True, markup=False)
    console.print(f"sha256 of the manifest  {output.digest}", soft_wrap=True)
    for file in output.files:
        console.print(f"{file.sha256[:12]}  {size(file.bytes):>9}  {file.path}", soft_wrap=True, markup=False)
    if output.shards:
        total = size(sum(file.bytes for file in output.shards))
        console.print(f"{len(output.shards)} tars and indexes, {total}, which the tables name")
    if output.elsewhere:
        console.print(f"{output.elsewhere} tars and indexes at addresses of their own, which stay there")
    if to is not None:
        console.print(f"copied to {to}, and found whole", soft_wrap=True, markup=False)


@app.command()
def checkpoints(workflow_id: WorkflowId = None, root: Root = None, as_json: AsJson = False) -> None:
    """List the committed checkpoints of a workflow's stages.

    Example: `patchline checkpoints digits-20260131`
    """
    from pipeline.checkpoints import checkpoints as list_checkpoints
    from pipeline.display import checkpoint_table

    storage, found, workflow = of_workflow(workflow_id, root)
    rows = list_checkpoints(storage, found, workflow)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        console.print(checkpoint_table(rows))


@app.command()
def audit(
    workflow_id: WorkflowId = None,
    root: Root = None,
    fast: Annotated[bool, typer.Option("--fast", help="compare sizes alone")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify every stored byte of a workflow: outputs, shards, checkpoints. Exit code 1 where something is wrong.

    Example: `patchline audit digits-20260131 --fast`
    """
    from pipeline.checkpoints import audit as audit_workflow
    from pipeline.display import audit_line

    storage, found, workflow = of_workflow(workflow_id, root)
    rows = []
    for row in audit_workflow(storage, found, workflow, fast=fast):
        rows.append(row)
        if not as_json:
            console.print(audit_line(row, fast=fast), soft_wrap=True)
    if as_json:
        print_json([asdict(row) for row in rows])
    raise typer.Exit(1 if any(row.problems for row in rows) else 0)


@app.command()
def export(
    to: Annotated[
        str, typer.Argument(metavar="TO", help="path or address: of an .npz or .safetensors, or of a folder")
    ],
    format: Annotated[str | None, typer.Option(help="npz, timm, hf or safetensors; what TO ends in if absent")] = None,
    workflow_id: Annotated[str | None, typer.Option("--workflow", help="id; the newest if absent")] = None,
    stage: Annotated[str | None, typer.Option(help="stage; the last one with a checkpoint if absent")] = None,
    update: Annotated[int | None, typer.Option(help="update of the checkpoint; the newest if absent")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="the weights themselves, not their average")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="do not verify the checkpoint first")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="leave out what the format has no place for")] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for other programs: Google's npz, timm's or Hugging Face's folder, or our safetensors.

    Its logits are compared before it appears. Example: `patchline export vit --format hf --stage pretrain`
    """
    from pipeline.checkpoints import Damaged
    from pipeline.exporting import export_model

    storage, found, workflow = of_workflow(workflow_id, root)
    try:
        about = export_model(
            storage, found, workflow, to, format=format, stage=stage, update=update, raw=raw, fast=fast, drop=drop
        )
    except Damaged as error:
        raise UserError(f"{error}: `patchline checkpoints` lists others, for --update") from None
    if as_json:
        print_json(about)
        return
    what = "averaged weights" if about["averaged"] else "weights"
    console.print(f"{to}: {what} of update {about['update']}, from {about['checkpoint']}", soft_wrap=True)
    for name in about.get("dropped", ()):
        console.print(f"left out: {name}", soft_wrap=True, markup=False)
    if (parity := about.get("parity")) is not None:
        console.print(
            f"logits of {parity['compared_with']} differ by {parity['greatest_difference']:.1e} at most; "
            f"the greatest is {parity['greatest_logit']:.2f}",
            soft_wrap=True,
        )
        if parity["epsilon_difference"] is not None:
            console.print(
                f"the library has {parity['epsilons']}, for which the format has no place: with these, which were "
                f"compared, logits are up to {parity['epsilon_difference']:.1e} from the model's",
                soft_wrap=True,
            )
        print_note(parity["note"] and f"the format's own library did not load it: {parity['note']}")


@app.command()
def schema(
    markdown: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="write pages about stages and metrics there instead")
    ] = None,
) -> None:
    """Print the JSON schema of the workflow file, for editors.

    Example: `patchline schema > workflow.schema.json`
    """
    if markdown is None:
        from pipeline.config import json_schema

        print_json(json_schema())
        return
    from pipeline.stage_pages import pages

    for path, text in pages().items():
        (markdown / path).parent.mkdir(parents=True, exist_ok=True)
        (markdown / path).write_text(text, encoding="utf-8")
    console.print(f"{len(pages())} pages in {markdown}", soft_wrap=True)
