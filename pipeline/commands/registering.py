"""Models of finished workflows as registered models in MLflow."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.errors import UserError
from pipeline.commands.base import AsJson, Mlflow, Root, WorkflowId, console
from pipeline.commands.shown import print_json, told_beside
from pipeline.settings import resolve

app = typer.Typer()


@app.command()
def register(
    workflow_id: WorkflowId = None,
    name: Annotated[str | None, typer.Option(help="the registered model; the workflow file's if absent")] = None,
    stage: Annotated[str | None, typer.Option(help="whose model; the file's, or the last one, if absent")] = None,
    champion: Annotated[
        str | None, typer.Option(metavar="METRIC", help="figure that decides, such as finetune/test/accuracy")
    ] = None,
    no_champion: Annotated[bool, typer.Option("--no-champion", help="leave the alias champion alone")] = False,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="of the figure that decides")] = False,
    root: Root = None,
    mlflow: Mlflow = None,
    as_json: AsJson = False,
) -> None:
    """Make a finished model a version of a registered model in MLflow, which loads and serves it by its address.

    Example: `patchline register --name digits --champion finetune/test/accuracy`
    """
    from pipeline.register import AS_THE_FILE_SAYS
    from pipeline.register import register as register_model
    from pipeline.register_config import ChampionConfig

    if champion and no_champion:
        raise UserError(f"--champion {champion} and --no-champion contradict each other: give one of them")
    if lower_is_better and not champion:
        raise UserError("--lower-is-better says nothing without --champion METRIC")
    rule = None if no_champion else AS_THE_FILE_SAYS
    if champion:
        try:
            rule = ChampionConfig(metric=champion, higher_is_better=False if lower_is_better else None)
        except ValueError as error:
            raise UserError(f"--champion {champion}: expected a figure such as finetune/test/accuracy") from error
    settings = resolve(root=root, mlflow=mlflow)
    with told_beside(as_json):
        found = register_model(workflow_id, settings, name=name, stage=stage, champion=rule)
    if as_json:
        print_json(asdict(found))
        return
    beside = f"{'new' if found.new else 'there already'}, of {found.stage} of {found.workflow}"
    console.print(f"{found.address}  {beside}", soft_wrap=True, markup=False)
    if found.reason:
        console.print(f"champion {found.reason}", soft_wrap=True, markup=False)
    address = f"models:/{found.name}@champion" if found.champion == found.version else found.address
    quoted = shlex.quote(address)
    lines = {
        "load": f'mlflow.pyfunc.load_model("{address}")',
        "serve": f"MLFLOW_TRACKING_URI={settings.mlflow} mlflow models serve -m {quoted} --env-manager local",
        "page": found.page,
    }
    for what, line in lines.items():
        if line:
            console.print(f"{what:5} {line}", soft_wrap=True, markup=False)
