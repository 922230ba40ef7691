"""Looking for a workflow's runs in MLflow, and what is done where one of them is there twice.

A server may do late what it was asked for, after the driver has given up and the next one has asked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.mlflow_errors import denied, refused


def own_runs(client: Any, experiment: str, query: str, root: str) -> Iterator[Any]:
    """The runs that a query finds, of workflows in this root. Earlier versions did not say the root."""
    page: str | None = None
    while page != "":
        found = client.search_runs([experiment], query, page_token=page)
        yield from (run for run in found if run.data.tags.get("patchline.root", root) == root)
        page = found.token or ""


def filled(run: Any) -> int:
    """How much has been logged to a run."""
    return len(run.data.params) + len(run.data.metrics) + len(run.data.tags)


def drop_doubles(client: Any, runs: Iterator[Any], fed: Mapping[str, str]) -> None:
    """Of runs with the same key delete all but one: the one that is `fed`, by keys without the workflow's id, or else
    the one to which most has been logged. They stay where MLflow lets us delete nothing, and those of an earlier
    version, which did not say the root."""
    by_key: dict[str, list[Any]] = {}
    for run in (run for run in runs if "patchline.root" in run.data.tags):
        by_key.setdefault(run.data.tags["patchline.key"].partition(":")[2], []).append(run)
    for key, found in by_key.items():
        own = next((run for run in found if run.info.run_id == fed.get(key)), None)
        kept = (own or max(found, key=filled)).info.run_id
        for run in found:
            if run.info.run_id != kept:
                _delete(client, run.info.run_id)


def _delete(client: Any, run: str) -> None:
    try:
        client.delete_run(run)
    except Exception as error:
        if not (refused(error) or denied(error)):
            raise
