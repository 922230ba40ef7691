"""`patchline init`: from four answers to a workflow file that runs."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError
from pipeline.beginning.file import workflow_text
from pipeline.beginning.here import Here, here
from pipeline.beginning.look import Seen, look
from pipeline.beginning.proposal import Answers, Proposal, propose
from pipeline.config import parse_workflow

WHERE = "local, cluster, or the address of a Ray cluster such as http://HEAD:8265"


def init(
    images: str,
    to: str | Path = "mine.yaml",
    *,
    classes: int | None = None,
    model: str | None = None,
    where: str = "local",
    force: bool = False,
    seen: Seen | None = None,
    machine: Here | None = None,
) -> Proposal:
    """Write a workflow file for images to begin with, and return what it proposes.

    `classes` is how many of them pretraining sees, None all. `seen` and `machine` are looked at where they are not
    given. Raises UserError for what is no source of images, an answer that cannot be, and a file that is there
    without `force`.
    """
    check_free(to, force=force)
    answers = Answers(images=images, classes=classes, model=model or None, where=checked_where(where))
    proposal = propose(answers, seen or look(images), machine or here())
    text = workflow_text(proposal)
    # What it says is looked at as any other file: the answers may contradict each other.
    parse_workflow(text, str(to))
    Path(to).write_text(text, encoding="utf-8")
    return proposal


def check_free(to: str | Path, *, force: bool) -> None:
    """Raise UserError where there is something at this path that would be lost, or no folder for it."""
    path = Path(to)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--to {path}: expected a file in a folder that is there, such as mine.yaml")
    if path.exists() and not force:
        raise UserError(f"--to {path}: is there already: name another file, or overwrite it with --force")


def checked_where(where: str) -> str:
    """The same. Raises UserError for what names no place."""
    if where in ("local", "cluster") or where.startswith(("http://", "https://")):
        return where
    raise UserError(f"--where {where}: expected {WHERE}")


def number_of_classes(text: str) -> int | None:
    """None for `all`, else a number. Raises UserError."""
    if text.strip().lower() == "all":
        return None
    if text.strip().isdigit():
        return int(text)
    raise UserError(f"--classes {text}: expected all, or how many of them pretraining sees, such as 7")
