"""Clusters to run on: the files that Kubernetes, Ray's launcher and AWS are given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.base import console

app = typer.Typer()
commands = typer.Typer(
    no_args_is_help=True,
    help="Make the files of a cluster from one shape file: for KubeRay, Ray's launcher, the bucket, images.\n\n"
    "Example: `patchline deploy init; patchline deploy render`",
)
app.add_typer(commands, name="deploy")

ShapeFile = Annotated[Path, typer.Argument(metavar="[SHAPE]", help="the shape file")]


@commands.command()
def init(path: ShapeFile = Path("cluster.yaml")) -> None:
    """Write a shape file to begin with, each field with what it means: 8 machines with 8 H100 each.

    Example: `patchline deploy init cluster.yaml`
    """
    from pipeline.deploying import init as write_example

    write_example(path)
    console.print(f"{path}: change what is marked <-, then: patchline deploy render {path}", markup=False)


@commands.command()
def render(
    path: ShapeFile = Path("cluster.yaml"),
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="where the files go")] = Path("deploy"),
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="karpenter, kuberay, mlflow, ray-up, bucket or docker; repeatable"),
    ] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="WORKFLOW", help="also a RayJob that runs it on a cluster of its own")
    ] = None,
) -> None:
    """Make the files of a cluster: machines, manifests for KubeRay and MLflow, a file for `ray up`, the bucket's.

    No secret is in any of them. Example: `patchline deploy render cluster.yaml --only kuberay`
    """
    from pipeline.config import load_workflow
    from pipeline.deploying import deploy, part

    loaded = load_workflow(workflow) if workflow is not None else None
    shape, files = deploy(path, to, only=[part(name) for name in only or []], workflow=loaded)
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)
    console.print(f"{len(files)} files: up to {shape.most_gpus} GPUs; docs/operations.md has what to do with them")
