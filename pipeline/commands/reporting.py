"""The page about a workflow."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cluster.errors import UserError
from pipeline.commands.base import AsJson, Root, WorkflowId, console
from pipeline.commands.browser import at_a_desktop, open_page
from pipeline.commands.shown import match, print_json, print_note
from pipeline.settings import Settings, resolve

app = typer.Typer()


@app.command()
def report(
    workflow_id: WorkflowId = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--compare", metavar="A B", help="lay two workflows side by side")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="FILE", help="where to write it, - for stdout; report-ID.html here if absent")
    ] = None,
    open_: Annotated[
        bool | None, typer.Option("--open/--no-open", help="in a browser; if absent, where there is a desktop")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of a GPU and hour")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write what a workflow has come to as one HTML file, and open it: figures, curves, pictures, time, cost.

    It needs no cluster, no MLflow and, to be read, no network. It is opened where this terminal is on a desktop, never
    over SSH. Example: `patchline report digits-20260131`
    """
    if compare is not None and workflow_id is not None:
        raise UserError(f"report {workflow_id} --compare {' '.join(compare)}: expected an id, or --compare and two")
    if to == "-" and open_:
        raise UserError("--to - --open: what goes to stdout is in no file to be opened: leave one of them out")
    if as_json and (to or open_):
        raise UserError(f"--json {'--to' if to else '--open'}: JSON goes to stdout: leave one of them out")
    settings = resolve(root=root)
    if as_json:
        _print_json(workflow_id, compare, settings, price)
        return
    html, name = _page(workflow_id, compare, settings, price)
    if to == "-":
        sys.stdout.write(html)
        return
    from pipeline.reporting import write

    path = write(html, to, name)
    console.print(str(path), soft_wrap=True, markup=False)
    opened = open_page(path.as_uri()) if open_ or (open_ is None and at_a_desktop()) else None
    if open_ and not opened:
        print_note("no browser with a window was found to open it: BROWSER names one, as a command")


def _page(
    workflow_id: str | None, compare: tuple[str, str] | None, settings: Settings, price: float | None
) -> tuple[str, str]:
    """The page, and what its file is called."""
    from pipeline import reporting

    if compare is None:
        found = match(workflow_id, settings)
        return reporting.report(found, settings, price=price), f"report-{found}.html"
    first, second = (match(wanted, settings) for wanted in compare)
    return reporting.compare_reports(first, second, settings, price=price), f"report-{first}-{second}.html"


def _print_json(
    workflow_id: str | None, compare: tuple[str, str] | None, settings: Settings, price: float | None
) -> None:
    from pipeline.reporting import document, gathered

    wanted = [workflow_id] if compare is None else list(compare)
    found = [document(gathered(own, settings, price=price)) for own in wanted]
    print_json(found[0] if compare is None else found)
