"""What the commands share: the console, and options that several have."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=False)

WorkflowName = Annotated[str, typer.Argument(metavar="WORKFLOW", help="a workflow file, or the name of one that ships")]
WorkflowId = Annotated[str | None, typer.Argument(metavar="[ID]", help="id or its beginning; the newest if absent")]
Overrides = Annotated[
    list[str] | None, typer.Option("-o", "--override", metavar="FIELD=VALUE", help="override a field; repeatable")
]
Root = Annotated[str | None, typer.Option(help="where everything is kept: s3://bucket/prefix or file:///folder")]
Mlflow = Annotated[str | None, typer.Option(help="address of the MLflow server")]
Address = Annotated[str | None, typer.Option(help="address of a Ray cluster's job server: http://host:8265")]
Name = Annotated[str | None, typer.Option(help="of the workflow, or an id that was given; may have * in it")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="submitted within this time: 90m, 12h, 2d")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def inside_job(address: str | None) -> bool:
    """Whether this process is a Ray job's, so that the cluster is there already; an address is somebody's own wish."""
    found = os.environ.get("RAY_ADDRESS", "")
    return bool(found) and address is None and not found.startswith(("http://", "https://"))
