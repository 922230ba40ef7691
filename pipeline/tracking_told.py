"""What a driver tells of a tracking server that takes nothing: why, what to set, and how much is not there."""

from __future__ import annotations

from collections.abc import Set

from cluster.errors import UserError
from pipeline.mlflow_ask import SETTINGS
from pipeline.mlflow_errors import cause, denied
from pipeline.mlflow_runs import Runs


def away(error: Exception, uri: str, root: str) -> str:
    """Of a server, or of the root in storage, when it first does not answer."""
    later = "; the work goes on, and what it is to show is sent when it does"
    if isinstance(error, UserError):
        return f"{error}{later}"
    if denied(error):
        return f"MLflow at {uri} does not let us in: set {SETTINGS}, where its driver runs{later} ({cause(error)})"
    # Those of the storage are Python's own; MLflow's client has others.
    where = root if isinstance(error, ConnectionError) else f"MLflow at {uri}"
    return f"{where} does not answer{later} ({cause(error)})"


def given_up(uri: str, workflow_id: str, reason: str, lacking: str) -> str:
    """At the end, of what it has not taken."""
    return (
        f"MLflow at {uri} did not take everything: {reason}; {lacking} are not there; all is kept in storage, and "
        f"`patchline resume {workflow_id}` sends it"
    )


def lacking(runs: Runs, wanted: Set[str]) -> str:
    """How much a server lacks, as far as that has been read from storage; `wanted` are the keys of all runs."""
    absent = len(wanted - runs.known)
    parts = (
        f"{absent} of its {len(wanted)} runs" if absent else "",
        f"{runs.points:,} points" if runs.points else "",
        f"{runs.files} files" if runs.files else "",
    )
    return ", ".join(part for part in parts if part) or "the ends of its runs"
