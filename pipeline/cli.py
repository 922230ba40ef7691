"""The command `patchline`: its commands, and what becomes of their errors."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from cluster.errors import UserError
from pipeline.commands import (
    beginning,
    deploy,
    measuring,
    registering,
    reporting,
    results,
    running,
    space,
    stack,
    supervise,
    upkeep,
    workflows,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Take labelled images to an evaluated Vision Transformer: ingest, pretrain, finetune, fewshot, "
    "as durable workflows on a Ray cluster, with everything kept in object storage and shown in MLflow.",
)
GROUPS = (
    *(beginning, stack, workflows, running, results, reporting, registering, measuring, upkeep, space, supervise),
    deploy,
)
for commands in GROUPS:
    app.add_typer(commands.app)

PACKAGES = ("pipeline", "stages", "cluster")
"""What is imported by these names has to be ours."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
"""What the system says of places that cannot be written."""
TAKEN_OVER = 70
"""Exit code of a driver that has lost its lease, whoever in it notices first: see `pipeline.keeper.exit_process`."""


def main() -> None:
    """Entry point: user errors, and places that do not answer, become one message and exit code 2."""
    try:
        check_shadows(Path.cwd())
        app()
    except (UserError, OSError) as error:
        # Storage says its address in an OSError, and the system the name of a file.
        _end(f"error: {error}{_way_out(error)}", 2)
    except Exception as error:
        # Imported here: what it brings along would be a third of the time of `--help`.
        from pipeline.head import LeaseLost

        if not isinstance(error, LeaseLost):
            raise
        _end(f"another driver took over: {error}", TAKEN_OVER)


def check_shadows(folder: Path) -> None:
    """Raise UserError where a package in the folder that one stands in would be imported in place of ours."""
    for name in PACKAGES:
        own = Path(__file__).parents[1] / name
        for other in (folder / name / "__init__.py", folder / f"{name}.py"):
            if other.exists() and other.resolve().parent != own.resolve():
                raise UserError(f"{other} would be imported in place of patchline's own package '{name}': rename it")


def _way_out(error: Exception) -> str:
    """What to do about a file that the system does not let us write, beyond what it says of it."""
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE or not error.filename:
        return ""
    room = "make room on its disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "expected a folder of one's own"
    return f": {room}, or name another place: --root, or PATCHLINE_HOME for the local stack and its results"


def _end(message: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(message, style="red", markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
