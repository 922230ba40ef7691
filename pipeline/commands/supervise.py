"""The supervisor, as a command."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.base import Address, AsJson, Mlflow, Root, console
from pipeline.settings import resolve

app = typer.Typer()


@app.command()
def supervise(
    address: Address = None,
    root: Root = None,
    mlflow: Mlflow = None,
    budget: Annotated[
        int, typer.Option(min=1, help="drivers in a row that may be lost before the workflow gets on")
    ] = 8,
    heartbeat: Annotated[
        Path | None, typer.Option(metavar="FILE", help="touched after each round, for who watches the supervisor")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Watch a root, and go on with workflows whose driver was lost with its machine or its cluster. Ends by Ctrl-C.

    Several may watch the same root. What was cancelled, has failed or is done is left alone.
    Example: `patchline supervise --address http://head:8265 --root s3://bucket/vit --mlflow http://mlflow:5000`
    """
    from pipeline.supervise import Supervisor

    def report(line: str) -> None:
        if as_json:
            found = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "message": line}
            console.out(json.dumps(found), highlight=False)
            return
        console.print(f"{time.strftime('%H:%M:%S')}  {line}", markup=False, soft_wrap=True)

    settings = resolve(root=root, mlflow=mlflow, address=address)
    supervisor = Supervisor(settings, budget=budget, report=report)
    report(f"watching {settings.root} for the cluster at {settings.jobs}")
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts what runs in its background deaf to SIGINT.
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        supervisor.run(threading.Event(), heartbeat.touch if heartbeat is not None else lambda: None)
