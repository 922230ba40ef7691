"""Planning and starting workflows."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from pipeline.commands.base import (
    Address,
    AsJson,
    Mlflow,
    Overrides,
    Root,
    WorkflowName,
    console,
)
from pipeline.commands.following import end_here, follow_to_end, run_here
from pipeline.commands.shown import print_json, print_note, print_status, told_beside
from pipeline.settings import Settings, resolve

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipeline.api import Submitted
    from pipeline.config import Workflow
    from pipeline.plan import Question

app = typer.Typer()


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
    mtbf_hours: Annotated[float | None, typer.Option(min=0.1, help="between two failures of a machine")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="training images of data sets not there yet")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="classes of data sets not there yet")] = None,
    image_bytes: Annotated[float | None, typer.Option(min=1, help="of each of their images in storage")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="N-exaFLOP", help="rank the models and lengths that this buys")
    ] = None,
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
    terms = Terms(efficiency=efficiency, price=price, notice=notice, mtbf_hours=mtbf_hours)
    stated = {"efficiency": efficiency, "price": price, "notice": notice, "mtbf_hours": mtbf_hours}
    given = of_gpus | rates | stated
    useless = [name for name, value in given.items() if value is not None]
    if on is None and useless:
        raise UserError(f"--{useless[0].replace('_', '-')} says nothing without --on, for example --on h100x8")
    shape = None if on is None else replace(parse_shape(on, **of_gpus), **rates)
    loaded = load_workflow(workflow, override or [])
    question = Question(shape=shape, terms=terms, images=images, classes=classes, image_bytes=image_bytes)
    if budget is not None:
        _print_budget(loaded, budget, resolve(root=root).storage(), question, as_json=as_json)
        return
    stages = plan_workflow(resolve(root=root).storage(), loaded, question)
    if as_json:
        print_json([stage.document() for stage in stages])
        return
    from pipeline.display import plan_table
    from pipeline.display_estimate import estimates

    console.print(plan_table(loaded.name, stages))
    if shape is not None:
        console.print(estimates(stages, shape, price=price))


def _print_budget(workflow: Workflow, text: str, storage: Storage, question: Question, *, as_json: bool) -> None:
    from pipeline.budget import budgeted, parse_budget

    exaflops = parse_budget(text)
    found = budgeted(storage, workflow, exaflops, question)
    if as_json:
        print_json({stage: [choice.document() for choice in ranked] for stage, ranked in found.items()})
        return
    from pipeline.display_budget import budget_table

    for stage, ranked in found.items():
        console.print(budget_table(stage, exaflops, ranked, price=question.terms.price))


@app.command()
def run(
    workflow: WorkflowName,
    override: Overrides = None,
    root: Root = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow in the foreground, in this process, without a Ray cluster.

    Ctrl-C saves a checkpoint and stops. Example: `patchline run digits --root file:///tmp/results`
    """
    from pipeline.config import load_workflow

    loaded = load_workflow(workflow, override or [])
    _print_warnings(loaded)
    settings = resolve(root=root, mlflow=mlflow)
    workflow_id, state = run_here(loaded, settings, as_json=as_json)
    end_here(workflow_id, state, settings, as_json=as_json)


@app.command()
def submit(
    workflow: WorkflowName,
    override: Overrides = None,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    workflow_id: Annotated[
        str | None, typer.Option("--id", metavar="NAME", help="of the workflow: submitted twice, it runs once")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="show progress until the end")] = False,
    unsupervised: Annotated[
        bool, typer.Option("--unsupervised", help="leave it to who submits it, such as a RayJob, if its driver is lost")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a workflow to a Ray cluster and print its id.

    Example: `patchline submit digits --address http://head:8265 --root s3://bucket/vit --mlflow http://mlflow:5000`
    """
    from pipeline.api import submit_once
    from pipeline.config import load_workflow

    loaded = load_workflow(workflow, override or [])
    _print_warnings(loaded)
    settings = resolve(root=root, mlflow=mlflow, address=address)
    print_note(_told_withheld(settings))
    found = submit_once(loaded, settings, workflow_id=workflow_id, supervised=not unsupervised)
    if as_json:
        print_json(asdict(found), line=follow)
    else:
        console.print(found.id)
        print_note(_found_as(found))
    if follow:
        raise typer.Exit(follow_to_end(found.id, settings, as_json=as_json))


def _print_warnings(workflow: Workflow) -> None:
    from pipeline.consistency import told_at_once

    for line in told_at_once(workflow.stages):
        print_note(f"! {line}")


def _told_withheld(settings: Settings) -> str:
    from pipeline.settings import SEND_SECRETS

    if settings.jobs is None or not (names := settings.withheld()):
        return ""
    return (
        f"kept here: {', '.join(names)}: the cluster's machines use credentials of their own; {SEND_SECRETS}=1 sends "
        "these along, where all who may use the cluster can read them"
    )


def _found_as(found: Submitted) -> str:
    """What there is to say where the workflow had been submitted before."""
    if found.driver is None:
        return f"{found.id} is {found.state}: nothing was submitted"
    return "" if found.state == "new" else f"{found.id} was {found.state}: going on from what is done"


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
    as_json: AsJson = False,
) -> None:
    """Turn labelled images into WebDataset shards with a manifest; workflows then reuse them.

    On a Ray cluster where one is there, else in this process.
    Example: `patchline ingest photos s3://bucket/photos -o ingest.longest_side=512`
    """
    from pipeline.api import submit as submit_workflow
    from pipeline.ingestion import ingest_workflow

    workflow = ingest_workflow(source, destination, override or [])
    settings = resolve(root=root, mlflow=mlflow, address=address)
    if settings.jobs is not None:
        raise typer.Exit(follow_to_end(submit_workflow(workflow, settings), settings, as_json=as_json))
    workflow_id, state = run_here(workflow, settings, as_json=as_json)
    end_here(workflow_id, state, settings, as_json=as_json)


@app.command("import")
def import_(
    path: Annotated[str, typer.Argument(metavar="PATH", help="an .npz, a .safetensors, or a folder of timm's or HF's")],
    num_heads: Annotated[int | None, typer.Option(min=1, help="attention heads, where nothing says it")] = None,
    override: Overrides = None,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Take over a model that somebody else has trained, and print what was found; workflows then reuse it.

    On a Ray cluster where one is there, else in this process.
    Example: `patchline import B_16.npz -o import.activation=gelu_tanh`
    """
    from pipeline.api import submit as submit_workflow
    from pipeline.importing import import_workflow, imported, told

    workflow = import_workflow(path, override or [], num_heads=num_heads)
    settings = resolve(root=root, mlflow=mlflow, address=address)
    with told_beside(as_json):
        if settings.jobs is not None:
            workflow_id = submit_workflow(workflow, settings)
            code = follow_to_end(workflow_id, settings)
        else:
            workflow_id, state = run_here(workflow, settings, as_json=as_json)
            code = 0 if state == "done" else 1
    if code or as_json:
        print_status(workflow_id, settings, as_json=as_json)
    if not code and not as_json:
        for name, value in told(imported(settings.storage(), workflow_id).meta["imported"]):
            console.print(f"{name:18}  {value}", soft_wrap=True, markup=False)
    raise typer.Exit(code)
