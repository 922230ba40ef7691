"""MLflow's runs of one workflow, by keys of ours. `mlflow_models.py` and `model_folder.py` have its models; nobody else
imports mlflow.

What is logged is held back and sent in batches, one request for many things: a workflow of a thousand short stages
would otherwise wait for thousands of answers. A run that ends has been sent everything.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline import mlflow_experiment
from pipeline.mlflow_errors import refused, tell_refused
from pipeline.mlflow_search import drop_doubles, filled, own_runs
from stages.metrics import Point

BATCH, OTHERS = 1000, 100
"""Points in one request, and params or tags in one; MLflow takes no more."""
ENDS, POINTS = 16, 10_000
"""Runs that have ended, and points, that are held back at most while there is always something else to do."""
CHARACTERS = 6000
"""Of a param's value."""


@dataclass
class _Held:
    """What is still to be sent to a run."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    status: str | None = None
    """What the run ends with, once all else has been sent."""

    @property
    def logged(self) -> bool:
        return bool(self.params or self.tags or self.points)


class Runs:
    """Finds or makes the runs of a workflow, and sends them what is logged. Calls that ask the server may raise.

    `sent` is called after each batch; where it returns False, no more are sent for now. Workflows of one id in two
    roots have runs of their own.
    """

    def __init__(self, uri: str, workflow_id: str, sent: Callable[[], bool], root: str) -> None:
        self._uri, self._id, self._sent, self._root = uri, workflow_id, sent, root.rstrip("/")
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[str, str] = {}
        self._held: dict[str, _Held] = {}
        self._files = deque[Callable[[], None]]()
        self._new = False
        """Whether MLflow has nothing of this workflow but what we know: then there is nothing to look for."""
        self._doubted = False

    def connect(self) -> None:
        """Find the server and our experiment there, which is restored where it has been deleted.

        Raises UserError where that is for somebody else to do.
        """
        self._client = _client(self._uri)
        self._experiment = mlflow_experiment.ensure(self._client)

    def restore(self) -> bool:
        """Bring our experiment back where somebody has deleted it meanwhile; whether that was so. See `connect`."""
        if not self.deleted():
            return False
        mlflow_experiment.restore(self._client, self._experiment)
        return True

    def deleted(self) -> bool:
        """Whether our experiment has been deleted: then the server refuses whatever is said of its runs."""
        return bool(self._experiment) and mlflow_experiment.is_deleted(self._client, self._experiment)

    @property
    def new(self) -> bool:
        return self._new

    @property
    def client(self) -> Any:
        """MLflow's own, of the server that was found."""
        return self._client

    @property
    def experiment(self) -> str:
        """Number of our experiment."""
        return self._experiment

    def in_doubt(self) -> None:
        """The server may have done what was asked before its answer was lost: look before anything is made."""
        self._new, self._doubted = False, True

    # Runs

    def __getitem__(self, key: str) -> str:
        """A run's id. Raises KeyError where there is none of this key, since MLflow refused it."""
        return self._runs[key]

    def ensure(self, key: str, parent: str | None, name: str, tags: Mapping[str, str] = MappingProxyType({})) -> str:
        """The run with this key in this workflow, made where it does not exist, running again where it ended.

        `tags` cost no request of their own where it is made.
        """
        if key in self._runs:
            return self._runs[key]
        run = None if self._new else self.find(key)
        if run is not None:
            self._client.update_run(run, status="RUNNING")
            self.log_tags(run, tags)
        else:
            own = {
                "patchline.key": f"{self._id}:{key}",
                "patchline.workflow": self._id,
                "patchline.root": self._root,
                **tags,
            }
            if parent is not None:
                own["mlflow.parentRunId"] = self._runs[parent]
            run = self._client.create_run(self._experiment, run_name=name, tags=own).info.run_id
            self._new = self._new or (parent is None and not self._doubted)
        self._runs[key] = run
        return run

    def find(self, key: str) -> str | None:
        """The run with this key in this workflow, as it is; None where there is none."""
        if key in self._runs:
            return self._runs[key]
        query = f"tags.`patchline.key` = '{self._id}:{key}'"
        own = list(own_runs(self._client, self._experiment, query, self._root))
        return max(own, key=filled).info.run_id if own else None

    def drop_doubles(self) -> None:
        """Delete the runs of this workflow that nobody feeds, see `mlflow_search.py`."""
        query = f"tags.`patchline.workflow` = '{self._id}'"
        drop_doubles(self._client, own_runs(self._client, self._experiment, query, self._root), self._runs)
        self._sent()

    def running_below(self, run: str) -> list[str]:
        """Keys of the runs below this one that have not ended, as an earlier driver left them."""
        query = f"tags.`mlflow.parentRunId` = '{run}' and attributes.status = 'RUNNING'"
        found = {
            left.data.tags["patchline.key"].removeprefix(f"{self._id}:"): left.info.run_id
            for left in self._client.search_runs([self._experiment], query)
        }
        self._runs |= found
        return list(found)

    def end(self, run: str, status: str) -> None:
        """End a run when what is held back for it has been sent."""
        self._of(run).status = status

    # What is logged

    def log_params(self, run: str, values: Mapping[str, Any]) -> None:
        self._of(run).params |= {key: str(value)[:CHARACTERS] for key, value in values.items()}

    def log_tags(self, run: str, values: Mapping[str, str]) -> None:
        self._of(run).tags |= values

    def log_points(self, run: str, points: list[Point]) -> None:
        self._of(run).points += points

    def send(self) -> None:
        """Send what is held back."""
        for run in list(self._held):
            self._send(run)

    @property
    def known(self) -> frozenset[str]:
        """Keys of the runs that are there."""
        return frozenset(self._runs)

    @property
    def points(self) -> int:
        """Points that are held back."""
        return sum(len(held.points) for held in list(self._held.values()))

    @property
    def many(self) -> bool:
        """Whether much is held back: ends of many runs, or many points."""
        ends = sum(held.status is not None for held in self._held.values())
        return ends >= ENDS or self.points > POINTS

    def heard(self) -> None:
        """Tell that the server answers."""
        self._sent()

    def _of(self, run: str) -> _Held:
        return self._held.setdefault(run, _Held())

    def _send(self, run: str) -> None:
        """Batch by batch: a failure in between repeats one batch alone."""
        held = self._of(run)
        while held.logged:
            params, tags = (dict(list(items.items())[:OTHERS]) for items in (held.params, held.tags))
            points = held.points[: BATCH - len(params) - len(tags)]
            self._log(run, params, tags, points)
            for name in params:
                del held.params[name]
            for name in tags:
                del held.tags[name]
            del held.points[: len(points)]
            if not self._sent():
                return
        if held.status is not None:
            self._client.set_terminated(run, held.status)
            self._sent()
        del self._held[run]

    def _log(self, run: str, params: dict[str, str], tags: dict[str, str], points: list[Point]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        parts: dict[str, list[Any]] = {
            "params": [Param(key, value) for key, value in params.items()],
            "tags": [RunTag(key, value) for key, value in tags.items()],
            "metrics": [Metric(point.name, point.value, point.time_ms, point.step) for point in points],
        }
        try:
            self._client.log_batch(run, **parts)
        except Exception as error:
            if not refused(error) or self.deleted():
                raise
            # A single one that MLflow does not take is no reason to lose the others.
            for name, part in parts.items():
                self._log_part(run, name, part)

    def _log_part(self, run: str, name: str, part: list[Any]) -> None:
        for item in part:
            try:
                self._client.log_batch(run, **{name: [item]})
            except Exception as error:
                if not refused(error):
                    raise
                tell_refused(error)

    # Files and data sets

    def log_text(self, run: str, text: str, name: str) -> None:
        """A file with this text, in place of an earlier one."""
        self._files.append(lambda: self._client.log_text(run, text, name))

    def log_dataset(self, run: str, *, name: str, digest: str, source: str, counts: Mapping[str, int], context: str):
        """A data set that a run reads or makes; `context` says which."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type="s3" if source.startswith("s3://") else "local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(counts),
        )
        self._client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_table(self, run: str, rows: list[dict[str, Any]], name: str) -> None:
        """A table of equal rows, once."""
        self._files.append(lambda: self._send_table(run, rows, name))

    def log_file(self, run: str, name: str, read: Callable[[], bytes]) -> None:
        """A file, once."""
        self._files.append(lambda: self._send_file(run, name, read))

    @property
    def files(self) -> int:
        """Files that are held back: their store may be another one than the server's, and away by itself."""
        return len(self._files)

    def send_file(self) -> None:
        """Send the first of them. May raise, and leaves it the first then."""
        self._files[0]()
        self._files.popleft()
        self._sent()

    def drop_file(self) -> None:
        """Give up the first of them."""
        self._files.popleft()

    def _send_table(self, run: str, rows: list[dict[str, Any]], name: str) -> None:
        if not self._has_artifact(run, name):
            columns = {key: [row.get(key) for row in rows] for key in (rows[0] if rows else {})}
            self._client.log_table(run, columns, name)

    def _send_file(self, run: str, name: str, read: Callable[[], bytes]) -> None:
        if self._has_artifact(run, name):
            return
        with tempfile.TemporaryDirectory(prefix="patchline-") as folder:
            path = Path(folder) / name
            path.write_bytes(read())
            self._client.log_artifact(run, str(path))

    def _has_artifact(self, run: str, path: str) -> bool:
        return any(item.path == path for item in self._client.list_artifacts(run))


def _client(uri: str) -> Any:
    # Progress bars that a notebook cannot show are nobody's business.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        import mlflow

    # Its address is this client's alone: a user's own process may have another server, and a run under way there.
    return mlflow.MlflowClient(uri)
