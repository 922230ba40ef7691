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
    """A command about a workflow as it has to be typed here: with its root, where that is not the one that is usual."""
    return shlex.join([*f"{program()} {verb}".split(), workflow_id, *options, *_places(verb, settings)])


def _places(verb: str, settings: Settings) -> list[str]:
    try:
        usual = resolve()
    except UserError:
        usual = None
    named = {"--root": (settings.root, usual and usual.root)}
    if verb == "resume":
        named["--mlflow"] = (settings.mlflow, usual and usual.mlflow)
    return [word for option, (own, known) in named.items() if own != known for word in (option, own)]
