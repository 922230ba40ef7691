"""The first ten minutes: a workflow file for one's own images, and what is missing on a machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from pipeline.commands.base import Address, AsJson, Mlflow, Root, console
from pipeline.commands.shown import print_json, program
from pipeline.settings import home

if TYPE_CHECKING:
    from pipeline.beginning.look import Seen
    from pipeline.beginning.proposal import Proposal

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[str | None, typer.Argument(metavar="[IMAGES]", help="the images; the same as --images")] = None,
    images: Annotated[
        str | None, typer.Option(help="a folder for each class, a table, archives, tars, or digits")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="all|N", help="how many classes pretraining sees; the others are held out")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Ti/16, S/16, B/16, R50+B/16, …; one that fits if absent")] = None,
    where: Annotated[str | None, typer.Option(help="local, cluster, or a Ray cluster's http://HEAD:8265")] = None,
    to: Annotated[Path, typer.Option(metavar="FILE", help="where the workflow file goes")] = Path("mine.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing, take what is proposed")] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite the file")] = False,
) -> None:
    """Write a workflow file for your images that runs, with comments: asks four questions, or takes options.

    Example: `patchline init photos --to mine.yaml`
    """
    from pipeline.beginning.look import look
    from pipeline.beginning.writing import check_free, checked_where, number_of_classes
    from pipeline.beginning.writing import init as write

    asking = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    force = force or (asking and to.is_file() and typer.confirm(f"{to} is there already. Overwrite it?"))
    check_free(to, force=force)
    source = _given(folder, images) or (
        _ask("Images: a folder for each class, a table, tars", "photos") if asking else ""
    )
    if not source:
        raise UserError("no images are named: expected a folder, a table or tars: patchline init photos")
    seen = look(source)
    if asking:
        _tell(seen)
        classes = classes or _ask(_how_many(seen), "all")
        model = model or _ask("Model: Ti/16, S/16, B/16, …, or one that fits", "fitting")
        where = where or _ask("Where: local, cluster, or http://HEAD:8265", "local")
    proposal = write(
        source,
        to,
        classes=number_of_classes(classes or "all"),
        model=None if model == "fitting" else model,
        where=checked_where(where or "local"),
        force=force,
        seen=seen,
    )
    if not asking:
        _tell(seen)
    _tell_next(proposal, to)


@app.command()
def doctor(
    root: Root = None,
    mlflow: Mlflow = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Say what is missing on this machine and how to get it; with places named, whether they answer. Takes seconds.

    Exit code 1 where something needed is missing. Example: `patchline doctor --root s3://bucket/vit`
    """
    from pipeline.display_doctor import doctor_report
    from pipeline.doctor import doctor as examine

    found = examine(root=root, mlflow=mlflow, address=address)
    if as_json:
        print_json(found.document())
    else:
        console.print(doctor_report(found))
    raise typer.Exit(1 if found.missing else 0)


def _given(folder: str | None, images: str | None) -> str | None:
    if folder and images and folder != images:
        raise UserError(f"images are named twice, {folder} and --images {images}: name them once")
    return images or folder


def _ask(question: str, proposal: str) -> str:
    return str(typer.prompt(question, default=proposal)).strip()


def _how_many(seen: Seen) -> str:
    known = "" if seen.classes is None else f" of {seen.classes:,}"
    return f"Classes{known} that pretraining sees: all, or a number, the others being held out"


def _tell(seen: Seen) -> None:
    from pipeline.beginning.words import seen_in_words

    console.print(seen_in_words(seen, Path.cwd()), markup=False, soft_wrap=True)


def _tell_next(proposal: Proposal, path: Path) -> None:
    from cluster import local
    from pipeline.beginning.here import here
    from pipeline.beginning.words import commands, here_in_words, time_in_words

    machine = here_in_words(here(0.0)) if proposal.answers.where == "local" else None
    for line in filter(None, (machine, *(f"note: {note}" for note in proposal.notes))):
        console.print(line, markup=False)
    took = time_in_words(proposal)
    console.print(f"{path} is written{'' if took is None else f': {took}, roughly'}. Next:", markup=False)
    for command, meaning in commands(proposal, str(path), program(), up=local.load(home()) is not None):
        console.print(f"  [dim]# {meaning}[/dim]")
        console.print(f"  {command}", markup=False, soft_wrap=True)
