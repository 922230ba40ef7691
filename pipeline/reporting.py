"""`report`: a workflow as one HTML file, or two of them beside each other. From storage alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import UserError
from pipeline.settings import Settings
from pipeline.status import find

if TYPE_CHECKING:
    from cluster.storage import Storage
    from pipeline.report.document import Report


def report(workflow_id: str | None, settings: Settings, *, price: float | None = None) -> str:
    """The page about a workflow, the newest where none is named. `price` is money for a GPU and hour.

    Raises UserError where there is no such workflow.
    """
    from pipeline.report.render import page

    return page(gathered(workflow_id, settings, price=price))


def compare_reports(first: str, second: str, settings: Settings, *, price: float | None = None) -> str:
    """The page that lays two workflows of a root side by side. Raises UserError where there is no such workflow."""
    from pipeline.report.compare import comparison_page

    found = [gathered(workflow_id, settings, price=price) for workflow_id in (first, second)]
    if found[0].id == found[1].id:
        raise UserError(f"--compare {first} {second}: both are {found[0].id}; `patchline list` shows the others")
    return comparison_page(*found)


def gathered(workflow_id: str | None, settings: Settings, *, price: float | None = None) -> Report:
    """What a report says, as plain values. Raises UserError where there is no such workflow."""
    from pipeline.report.gather import gather

    storage = settings.storage()
    return gather(storage, find(storage, workflow_id), price=price)


def page_or_word(storage: Storage, workflow_id: str) -> str:
    """The page about a workflow; empty where it cannot be made, which is told.

    It can be made at any time, and so is no reason for a workflow to wait or to fail.
    """
    from pipeline.report.gather import gather
    from pipeline.report.render import page

    try:
        return page(gather(storage, workflow_id))
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"MLflow is given no report: {why}; `patchline report {workflow_id}` makes one", flush=True)
        return ""


def document(found: Report) -> dict[str, Any]:
    """A report as JSON, without the bytes of its pictures."""
    whole = asdict(found)
    for stage in whole["stages"]:
        stage["pictures"] = [{**picture, "data": None} for picture in stage["pictures"]]
    return whole


def write(html: str, to: str | None, name: str) -> Path:
    """Write a page to the file `to`, by `name` into the folder `to`, or into the working directory; returns where.

    Raises UserError where that cannot be.
    """
    path = Path(to or ".").expanduser().absolute()
    path = path / name if path.is_dir() else path
    if not path.parent.is_dir():
        raise UserError(f"--to {to}: there is no folder {path.parent}: make it first, or name another place")
    path.write_text(html, encoding="utf-8")
    return path
