"""The command `patchline`: parses, prints, sets the exit code. The work is in `pipeline.api`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from cluster.errors import UserError
from pipeline.head import LeaseLost
from pipeline.settings import Settings, check_up, home, of_stack, resolve

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipeline.config import Workflow

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Take labelled images to an evaluated Vision Transformer: ingest, pretrain, finetune, fewshot, "
    "as durable workflows on a Ray cluster, with everything kept in object storage and shown in MLflow.",
)
console = Console(highlight=False, soft_wrap=False)

WorkflowName = Annotated[str, typer.Argument(metavar="WORKFLOW", help="a workflow file, or the name of one that ships")]
WorkflowId = Annotated[str | None, typer.Argument(metavar="[ID]", help="id or its beginning; the newest if absent")]
Overrides = Annotated[
    list[str] | None, typer.Option("-o", "--override", metavar="FIELD=VALUE", help="override a field; repeatable")
]
Root = Annotated[str | None, typer.Option(help="where everything is kept: s3://bucket/prefix or file:///folder")]
Mlflow = Annotated[str | None, typer.Option(help="address of the MLflow server")]
Address = Annotated[str | None, typer.Option(help="address of a Ray cluster's job server: http://host:8265")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

TAKEN_OVER = 70
"""Exit code of a driver that has lost its lease, whoever in it notices first: see `pipeline.keeper.exit_process`."""


def main() -> None:
    """Entry point: user errors, and places that do not answer, become one message and exit code 2."""
    try:
        app()
    except (UserError, OSError) as error:
        # Storage says its address in an OSError, and the system the name of a file.
        _end(f"error: {error}", 2)
    except LeaseLost as error:
        _end(f"another driver took over: {error}", TAKEN_OVER)


def _end(message: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(message, style="red", markup=False, soft_wrap=True)
    sys.exit(code)


@app.command()
def up() -> None:
    """Start the local stack: Ray, an S3 server and MLflow, on this machine alone.

    Example: `patchline up`
    """
    from cluster import local

    began = time.monotonic()
    stack = local.up(home(), report=lambda line: console.print(f"  {line}"))
    console.print(f"the stack is up ({time.monotonic() - began:.0f} s)")
    _print_addresses(stack)


@app.command()
def down() -> None:
    """Stop the local stack: the processes that `up` started, and no others. Data stays.

    Example: `patchline down`
    """
    from cluster import local

    ended = local.down(home())
    console.print(f"stopped: {', '.join(ended)}" if ended else "nothing was running")


@app.command()
def ui(open_: Annotated[bool, typer.Option("--open", help="open the MLflow page in the browser")] = False) -> None:
    """Show the addresses of the MLflow and Ray pages.

    Example: `patchline ui --open`
    """
    from cluster import local
    from pipeline.mlflow_page import address

    check_up()
    stack = local.load(home())
    if stack is None:
        settings = resolve()
        raise UserError(f"the local stack is not up: `patchline up` starts it. MLflow in use: {settings.mlflow}")
    _print_addresses(stack)
    if open_:
        typer.launch(address(stack.mlflow_url))


@app.command()
def demo(override: Overrides = None) -> None:
    """Run the main job on this machine: real digits through Ray, S3, DeepSpeed and MLflow.

    A second run reuses what the first has made. Example: `patchline demo -o finetune.resolution=32`
    """
    from cluster import local
    from pipeline.api import submit as submit_workflow
    from pipeline.config import load_workflow

    workflow = load_workflow("digits", override or [])
    console.print("starting the local stack: Ray, S3, MLflow")
    stack = local.up(home(), report=lambda line: console.print(f"  {line}"))
    settings = of_stack(stack)
    workflow_id = submit_workflow(workflow, settings)
    console.print(f"submitted {workflow_id}")
    code = _follow(workflow_id, settings)
    _print_addresses(stack)
    if code == 0:
        _print_next()
    raise typer.Exit(code)


@app.command()
def plan(
    workflow: WorkflowName,
    override: Overrides = None,
    root: Root = None,
    on: Annotated[str | None, typer.Option(metavar="GPUxN", help="what it needs and costs there: h100x64")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs of a machine; 8 if absent")] = None,
    gpu_memory_gb: Annotated[float | None, typer.Option(min=2, help="where a GPU's differs from its model's")] = None,
    network_gbit: Annotated[float | None, typer.Option(min=0.1, help="Gbit/s from each machine to others")] = None,
    bucket_mb_per_s: Annotated[float | None, typer.Option(min=0.1, help="MB/s from each machine to the bucket")] = None,
    efficiency: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="MFU to expect; the newest run's on GPUs if absent")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of a GPU and hour")] = None,
    notice: Annotated[float | None, typer.Option(min=0, help="seconds that a spot machine's end is told ahead")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="training images of data sets not there yet")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="classes of data sets not there yet")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a workflow would run, resume or reuse, and why; with `--on` its memory, time and cost. Changes nothing.

    Example: `patchline plan digits --on h100x8 --price 2.5 --images 1079 --classes 7`
    """
    from cluster.shapes import parse_shape
    from pipeline.config import load_workflow
    from pipeline.estimate import Terms
    from pipeline.plan import Question
    from pipeline.plan import plan as plan_workflow

    of_gpus = {"gpu_memory_gb": gpu_memory_gb, "gpus_per_node": gpus_per_node}
    rates = {"network_gbit": network_gbit, "bucket_mb_per_s": bucket_mb_per_s}
    terms = Terms(efficiency=efficiency, price=price, notice=notice)
    given = of_gpus | rates | {"efficiency": efficiency, "price": price, "notice": notice}
    useless = [name for name, value in given.items() if value is not None]
    if on is None and useless:
        raise UserError(f"--{useless[0].replace('_', '-')} says nothing without --on, for example --on h100x8")
    shape = None if on is None else replace(parse_shape(on, **of_gpus), **rates)
    loaded = load_workflow(workflow, override or [])
    question = Question(shape=shape, terms=terms, images=images, classes=classes)
    stages = plan_workflow(resolve(root=root).storage(), loaded, question)
    if as_json:
        _print_json([stage.document() for stage in stages])
        return
    from pipeline.display import plan_table
    from pipeline.display_estimate import estimates

    console.print(plan_table(loaded.name, stages))
    if shape is not None:
        console.print(estimates(stages, shape, price=price))


@app.command()
def run(workflow: WorkflowName, override: Overrides = None, root: Root = None, mlflow: Mlflow = None) -> None:
    """Run a workflow in the foreground, in this process, without a Ray cluster.

    Ctrl-C saves a checkpoint and stops. Example: `patchline run digits --root file:///tmp/results`
    """
    from pipeline.api import run as run_workflow
    from pipeline.config import load_workflow

    loaded = load_workflow(workflow, override or [])
    settings = resolve(root=root, mlflow=mlflow)
    workflow_id, state = run_workflow(loaded, settings)
    _print_status(workflow_id, settings)
    raise typer.Exit(0 if state == "done" else 1)


@app.command()
def submit(
    workflow: WorkflowName,
    override: Overrides = None,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="show progress until the end")] = False,
) -> None:
    """Send a workflow to a Ray cluster and print its id.

    Example: `patchline submit digits --address http://head:8265 --root s3://bucket/vit --mlflow http://mlflow:5000`
    """
    from pipeline.api import submit as submit_workflow
    from pipeline.config import load_workflow

    loaded = load_workflow(workflow, override or [])
    settings = resolve(root=root, mlflow=mlflow, address=address)
    workflow_id = submit_workflow(loaded, settings)
    console.print(workflow_id)
    if follow:
        raise typer.Exit(_follow(workflow_id, settings))


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="folder, table, archives or tars with the images")],
    destination: Annotated[
        str | None, typer.Argument(metavar="[DESTINATION]", help="where the tars go: s3://bucket/name, file:///folder")
    ] = None,
    override: Overrides = None,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
) -> None:
    """Turn labelled images into WebDataset shards with a manifest; workflows then reuse them.

    On a Ray cluster where one is there, else in this process.
    Example: `patchline ingest photos s3://bucket/photos -o ingest.longest_side=512`
    """
    from pipeline.api import run as run_workflow
    from pipeline.api import submit as submit_workflow
    from pipeline.ingestion import ingest_workflow

    workflow = ingest_workflow(source, destination, override or [])
    settings = resolve(root=root, mlflow=mlflow, address=address)
    if settings.jobs is not None:
        raise typer.Exit(_follow(submit_workflow(workflow, settings), settings))
    workflow_id, state = run_workflow(workflow, settings)
    _print_status(workflow_id, settings)
    raise typer.Exit(0 if state == "done" else 1)


@app.command()
def resume(
    workflow_id: WorkflowId = None,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    foreground: Annotated[bool, typer.Option(help="run in this process, without a Ray cluster")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="show progress until the end")] = False,
) -> None:
    """Continue a failed, killed or cancelled workflow from its records and its last committed checkpoint.

    Example: `patchline resume digits-20260131-101500-1a2b`
    """
    from pipeline.api import resume as resume_workflow
    from pipeline.status import holder

    settings = resolve(root=root, mlflow=mlflow, address=address)
    storage, known = settings.storage(), _id(workflow_id, settings)
    if (owner := holder(storage, known)) is not None:
        note = f"{known} is held by {owner}: going on when that driver ends, or is silent for its lease"
        console.print(note, style="yellow", soft_wrap=True)
    found, state = resume_workflow(known, settings, foreground=foreground)
    console.print(found)
    if foreground:
        _print_status(found, settings)
        raise typer.Exit(0 if state == "done" else 1)
    if follow:
        raise typer.Exit(_follow(found, settings))


@app.command()
def checkpoints(workflow_id: WorkflowId = None, root: Root = None, as_json: AsJson = False) -> None:
    """List the committed checkpoints of a workflow's stages.

    Example: `patchline checkpoints digits-20260131`
    """
    from pipeline.checkpoints import checkpoints as list_checkpoints
    from pipeline.display import checkpoint_table

    storage, found, workflow = _of_workflow(workflow_id, root)
    rows = list_checkpoints(storage, found, workflow)
    if as_json:
        _print_json([asdict(row) for row in rows])
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

    storage, found, workflow = _of_workflow(workflow_id, root)
    rows = []
    for row in audit_workflow(storage, found, workflow, fast=fast):
        rows.append(row)
        if not as_json:
            console.print(audit_line(row, fast=fast), soft_wrap=True)
    if as_json:
        _print_json([asdict(row) for row in rows])
    raise typer.Exit(1 if any(row.problems for row in rows) else 0)


@app.command()
def export(
    to: Annotated[str, typer.Argument(metavar="TO", help="file or address to write, ending in .safetensors")],
    workflow_id: Annotated[str | None, typer.Option("--workflow", help="id; the newest if absent")] = None,
    stage: Annotated[str | None, typer.Option(help="stage; the last one with a checkpoint if absent")] = None,
    update: Annotated[int | None, typer.Option(help="update of the checkpoint; the newest if absent")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="the weights themselves, not their average")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="do not verify the checkpoint first")] = False,
    root: Root = None,
) -> None:
    """Write the weights of a checkpoint to one safetensors file, streamed, and what they are to a JSON beside it.

    Example: `patchline export vit.safetensors --workflow digits-20260131 --stage pretrain`
    """
    from pipeline.checkpoints import Damaged
    from pipeline.checkpoints import export as export_weights

    storage, found, workflow = _of_workflow(workflow_id, root)
    try:
        about = export_weights(storage, found, workflow, to, stage=stage, update=update, raw=raw, fast=fast)
    except Damaged as error:
        raise UserError(f"{error}: `patchline checkpoints` lists others, for --update") from None
    what = "averaged weights" if about["averaged"] else "weights"
    console.print(f"{to}: {what} of update {about['update']}, from {about['checkpoint']}", soft_wrap=True)


@app.command()
def cancel(workflow_id: WorkflowId = None, root: Root = None) -> None:
    """Ask a workflow to save a checkpoint and stop. `resume` continues it.

    Example: `patchline cancel digits-20260131-101500-1a2b`
    """
    from pipeline.api import cancel as cancel_workflow

    found = cancel_workflow(workflow_id, resolve(root=root))
    console.print(f"{found} will stop after a checkpoint; `{program()} resume {found}` continues it", soft_wrap=True)


@app.command()
def status(workflow_id: WorkflowId = None, root: Root = None, as_json: AsJson = False) -> None:
    """Show what has happened to a workflow, stage by stage.

    Example: `patchline status`
    """
    settings = resolve(root=root)
    _print_status(_id(workflow_id, settings), settings, as_json=as_json)


@app.command()
def logs(
    workflow_id: WorkflowId = None,
    stage: Annotated[str | None, typer.Option(help="the log of this stage's workers; the driver's if absent")] = None,
    root: Root = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the workflow ends")] = False,
) -> None:
    """Print a workflow's log, also when its cluster is gone.

    Example: `patchline logs --stage pretrain`
    """
    from pipeline.api import ask_cluster
    from pipeline.status import workflow_logs

    settings = resolve(root=root)
    storage = settings.storage()
    ask = partial(ask_cluster, storage=storage, settings=settings)
    for text in workflow_logs(storage, _id(workflow_id, settings), stage, follow=follow, ask=ask):
        console.out(text, end="", highlight=False)


@app.command("list")
def list_(root: Root = None, as_json: AsJson = False) -> None:
    """List the workflows of a root and their states, oldest first. `silent`: its driver is gone; `resume` it.

    Example: `patchline list --root s3://bucket/vit`
    """
    from pipeline.api import all_states

    found = all_states(resolve(root=root))
    if as_json:
        _print_json(found)
        return
    for workflow_id, state in found.items():
        console.print(f"{state:10} {workflow_id}")


@app.command()
def schema() -> None:
    """Print the JSON schema of the workflow file, for editors.

    Example: `patchline schema > workflow.schema.json`
    """
    from pipeline.config import json_schema

    _print_json(json_schema())


def _follow(workflow_id: str, settings: Settings) -> int:
    """Show a submitted workflow until its newest driver ends; returns the exit code. Ctrl-C detaches."""
    from pipeline.api import DriverWatch, newest_driver
    from pipeline.display import follow
    from pipeline.driver import read_workflow

    storage = settings.storage()
    stages = list(read_workflow(storage, workflow_id).stages)
    try:
        found = follow(
            storage,
            workflow_id,
            stages,
            console,
            died=DriverWatch(storage, workflow_id, settings, here=True).died,
            driver=newest_driver(storage, workflow_id),
        )
    except KeyboardInterrupt:
        console.print(f"\nleft {workflow_id} running; `{program()} status {workflow_id}` shows it", soft_wrap=True)
        return 130
    _print_status(workflow_id, settings, reason=found.message)
    if found.state != "done":
        console.print(f"`{program()} resume {workflow_id}` continues it", markup=False)
    return 0 if found.state == "done" else 1


def _id(workflow_id: str | None, settings: Settings) -> str:
    from pipeline.record import listed
    from pipeline.status import match_id

    storage = settings.storage()
    return match_id(storage, list(listed(storage)), workflow_id)


def _print_status(workflow_id: str, settings: Settings, *, as_json: bool = False, reason: str = "") -> None:
    """`reason` is why the driver has ended, where that is known already."""
    from pipeline.api import ask_cluster
    from pipeline.display import fewshot_table, status_table
    from pipeline.driver import read_workflow
    from pipeline.status import StatusReader, silence, stage_tables
    from pipeline.words import duration

    storage = settings.storage()
    reader = StatusReader(storage, workflow_id, list(read_workflow(storage, workflow_id).stages))
    reader.update()
    ask_cluster(reader, storage, settings)
    if reason:
        reader.status.state, reader.status.message = "failed", reason
    elif reader.status.state == "running" and (seconds := silence(storage, workflow_id)) is not None:
        reader.status.message = f"its driver has been silent for {duration(seconds)}: `{program()} resume` continues it"
    tables = stage_tables(storage, reader.status)
    if as_json:
        _print_json({**asdict(reader.status), "tables": tables})
        return
    console.print(status_table(reader.status))
    if "\n" in reader.status.message:
        console.print(reader.status.message, markup=False, soft_wrap=True)
    for name, found in tables.items():
        if "fewshot" in found:
            console.print(f"[bold]{name}[/bold]")
            console.print(fewshot_table(found["fewshot"]))


def program() -> str:
    """How the user calls this command: by its name where the shell finds it, else by its path."""
    own = Path(sys.argv[0])
    found = shutil.which(own.name)
    if found is not None and Path(found).resolve() == own.resolve():
        return own.name
    return os.path.relpath(own) if own.name == "patchline" else "patchline"


def _print_addresses(stack: Any) -> None:
    from pipeline.mlflow_page import address

    console.print(f"  MLflow  {address(stack.mlflow_url)}", soft_wrap=True)
    console.print(f"  Ray     {stack.jobs_address}  asks for the token in {stack.token_path}", soft_wrap=True)
    console.print(f"  S3      {stack.s3_endpoint}  root {stack.root}")


def _print_next() -> None:
    name = program()
    console.print("\nthree things to try next")
    for command, meaning in (
        (f"{name} ui --open", "curves and tables of every stage, in MLflow"),
        (
            f"{name} submit digits -o seed=1; sleep 45; {name} down; {name} up; {name} resume --follow",
            "end every process in the middle, go on, lose nothing",
        ),
        (f"{name} submit folder -o ingest.source.path=FOLDER --follow", "your own images, a folder for each class"),
    ):
        console.print(f"  [dim]# {meaning}[/dim]\n  {command}", soft_wrap=True)


def _of_workflow(workflow_id: str | None, root: str | None) -> tuple[Storage, str, Workflow]:
    """A root's storage, the id of the workflow that is meant, and the workflow."""
    from pipeline.driver import read_workflow

    settings = resolve(root=root)
    storage, found = settings.storage(), _id(workflow_id, settings)
    return storage, found, read_workflow(storage, found)


def _print_json(document: Any) -> None:
    console.out(json.dumps(document, indent=2, default=lambda value: str(value) if isinstance(value, Path) else value))


if __name__ == "__main__":
    main()
