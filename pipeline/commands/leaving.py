"""What is said to whoever stops looking at a workflow, or stops it: how to come back."""

from __future__ import annotations

import shlex

from rich.console import Console

from cluster.errors import UserError
from pipeline.commands.base import console
from pipeline.commands.shown import program
from pipeline.settings import Settings, resolve

DETACHED, INTERRUPTED = (("status -f", "shows it again"), ("logs -f", "its log"), ("cancel", "stops it")), 130
"""Commands that are told of a workflow that goes on, with their meanings; and the exit code."""


def print_left(workflow_id: str, settings: Settings, *, beside: bool = False) -> None:
    """What becomes of a workflow whose follower has gone, and how to come back to it; `beside` an answer on stdout."""
    to = Console(stderr=True, highlight=False) if beside else console
    to.print(f"\n{workflow_id} goes on without this terminal", soft_wrap=True)
    for verb, meaning in DETACHED:
        to.print(f"  {command(verb, workflow_id, settings)}", f"[dim]{meaning}[/dim]", soft_wrap=True)


def command(verb: str, workflow_id: str, settings: Settings, *options: str) -> str:
    """A command about a workflow as it has to be typed here: with its places, where they are not the usual ones."""
    elsewhere = _places(settings, started=verb == "resume", here="--foreground" in options)
    return f"{program()} {verb} {shlex.join([workflow_id, *options, *elsewhere])}"


def _places(settings: Settings, *, started: bool, here: bool) -> list[str]:
    """Options for what differs from what is taken without them; MLflow and the cluster matter where drivers start."""
    try:
        usual = resolve()
    except UserError:
        usual = None
    named: dict[str, tuple[str | None, str | None]] = {"--root": (settings.root, usual and usual.root)}
    if started:
        named["--mlflow"] = (settings.mlflow, usual and usual.mlflow)
    if started and not here:
        named["--address"] = (settings.jobs, usual and usual.jobs)
    return [word for option, (own, known) in named.items() if own and own != known for word in (option, own)]
