"""The local stack, and the main job on it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from pipeline.commands.base import Overrides, console
from pipeline.commands.following import follow_to_end
from pipeline.commands.shown import print_addresses, program
from pipeline.settings import check_up, home, of_stack, resolve

if TYPE_CHECKING:
    from cluster.local import Stack

app = typer.Typer()


@app.command()
def up() -> None:
    """Start the local stack: Ray, an S3 server, MLflow and a supervisor of its workflows, on this machine alone.

    Example: `patchline up`
    """
    began = time.monotonic()
    stack = _up()
    console.print(f"the stack is up ({time.monotonic() - began:.0f} s)")
    print_addresses(stack)


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
    print_addresses(stack)
    if open_:
        typer.launch(address(stack.mlflow_url))


@app.command()
def demo(override: Overrides = None) -> None:
    """Run the main job on this machine: real digits through Ray, S3, DeepSpeed and MLflow.

    A second run reuses what the first has made. Example: `patchline demo -o finetune.resolution=32`
    """
    from pipeline.api import submit as submit_workflow
    from pipeline.config import load_workflow

    workflow = load_workflow("digits", override or [])
    console.print("starting the local stack: Ray, S3, MLflow")
    stack = _up()
    settings = of_stack(stack)
    workflow_id = submit_workflow(workflow, settings)
    console.print(f"submitted {workflow_id}")
    code = follow_to_end(workflow_id, settings)
    print_addresses(stack)
    if code == 0:
        _print_next()
    raise typer.Exit(code)


def _up() -> Stack:
    from cluster import local

    return local.up(home(), report=lambda line: console.print(f"  {line}"), companions={"supervise": _supervise})


def _supervise(stack: Stack) -> list[str]:
    """The command that goes on with the stack's workflows where their driver is lost."""
    places = ["--root", stack.root, "--mlflow", stack.mlflow_url, "--address", stack.jobs_address]
    return [sys.executable, "-m", "pipeline.cli", "supervise", *places]


def _print_next() -> None:
    name = program()
    console.print("\nthree things to try next")
    for command, meaning in (
        (f"{name} ui --open", "curves and tables of every stage, in MLflow"),
        (
            f"{name} submit digits -o seed=1; sleep 45; {name} down; {name} up; {name} resume --follow",
            "end every process in the middle, go on, lose nothing",
        ),
        (f"{name} init PHOTOS", "a workflow for your own images, a folder for each class"),
    ):
        console.print(f"  [dim]# {meaning}[/dim]\n  {command}", soft_wrap=True)
