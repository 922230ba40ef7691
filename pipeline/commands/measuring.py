"""Measuring what a workflow would find on its machines."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from cluster.errors import UserError
from pipeline.commands.base import Address, AsJson, Mlflow, Overrides, Root, WorkflowName, console, inside_job
from pipeline.commands.shown import print_json, told_beside
from pipeline.settings import resolve

app = typer.Typer()


@app.command("bench-data")
def bench_data(
    workflow: WorkflowName,
    override: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="one that trains; the first one if absent")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="for each of the four parts")] = 5.0,
    workers: Annotated[int, typer.Option(min=0, help="ranks on the Ray cluster; 0 measures in this process")] = 0,
    on: Annotated[str | None, typer.Option(metavar="GPUxN", help="GPUs to be fed: h100x64")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs of a machine; 8 if absent")] = None,
    efficiency: Annotated[float | None, typer.Option(min=0.01, max=1, help="MFU to expect of them")] = None,
    images_per_s: Annotated[float | None, typer.Option(min=0.1, help="what training takes of a machine")] = None,
    address: Address = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a machine can feed training with: storage, decoding, hand-over, and whether that is enough.

    The data set has to be there. Example: `patchline bench-data digits --on h100x8`
    """
    from cluster.shapes import parse_shape
    from pipeline.config import load_workflow
    from pipeline.display_feeding import feeding_report
    from pipeline.feeding import Ask, in_a_gang
    from pipeline.feeding import bench_data as measure

    if on is None and (gpus_per_node is not None or efficiency is not None):
        name = "--gpus-per-node" if gpus_per_node is not None else "--efficiency"
        raise UserError(f"{name} says nothing without --on, for example --on h100x8")
    if on is not None and images_per_s is not None:
        raise UserError("--on estimates what --images-per-s states: give one of them")
    settings = resolve(root=root, address=address)
    shape = None if on is None else parse_shape(on, gpus_per_node=gpus_per_node)
    ranks = None
    if workers:
        from pipeline.feeding_job import on_cluster

        ranks = partial(in_a_gang, workers) if inside_job(address) else partial(on_cluster, settings, workers)
    loaded, ask = (
        load_workflow(workflow, override or []),
        Ask(images_per_s=images_per_s, shape=shape, efficiency=efficiency),
    )
    with told_beside(as_json):
        fit = measure(loaded, settings.storage(), stage=stage, seconds=seconds, ask=ask, ranks=ranks)
    if as_json:
        print_json(fit.document())
    else:
        console.print(feeding_report(fit))


@app.command()
def preflight(
    workflow: Annotated[
        str | None, typer.Option(metavar="WORKFLOW", help="tell whether its training would wait for network or storage")
    ] = None,
    override: Overrides = None,
    images: Annotated[int | None, typer.Option(min=1, help="training images of data sets not there yet")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="classes of data sets not there yet")] = None,
    image_bytes: Annotated[float | None, typer.Option(min=1, help="of each of their images in storage")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="of all-reduces")] = 120.0,
    storage_seconds: Annotated[float, typer.Option(min=0.1, help="of writing to storage, and of reading")] = 5.0,
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Check storage, tracking and every machine of a cluster before anything is trained. Exit code 1 where unfit.

    Without a cluster, what can be checked from here. Example: `patchline preflight --workflow digits`
    """
    from pipeline.config import load_workflow
    from pipeline.display_preflight import preflight_report
    from pipeline.plan import Question
    from pipeline.preflight import Length
    from pipeline.preflight import preflight as check
    from pipeline.preflight_job import on_cluster

    sizes = {"--images": images, "--classes": classes, "--image-bytes": image_bytes}
    given = ["-o"] * bool(override) + [name for name, value in sizes.items() if value is not None]
    if given and workflow is None:
        raise UserError(f"{given[0]} says nothing without --workflow")
    settings = resolve(root=root, mlflow=mlflow, address=address)
    loaded = None if workflow is None else load_workflow(workflow, override or [])
    found = check(
        settings,
        Length(reduction=seconds, storage=storage_seconds),
        survey=partial(on_cluster, settings) if settings.jobs else None,
        workflow=loaded,
        question=Question(images=images, classes=classes, image_bytes=image_bytes),
        tell=(lambda line: None) if as_json else lambda line: console.print(f"… {line}", style="dim", markup=False),
    )
    if as_json:
        print_json(found.document())
    else:
        console.print(preflight_report(found))
    raise typer.Exit(0 if found.fit else 1)
