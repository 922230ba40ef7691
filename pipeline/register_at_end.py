"""The last thing that a driver shows of a workflow that is done: its model in MLflow's registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.errors import UserError
from cluster.storage import NotFound, Storage
from pipeline.config import Workflow
from pipeline.mlflow_models import Registry, unregistrable
from pipeline.mlflow_runs import Runs
from pipeline.registering import Registration
from pipeline.reuse import Finished


class RegisterAtEnd:
    """Called by the tracker until MLflow has taken the model. One for all tries: it keeps the model's files."""

    def __init__(self, storage: Storage, workflow_id: str, workflow: Workflow) -> None:
        self._storage, self._id, self._workflow = storage, workflow_id, workflow
        self._registration: Registration | None = None
        self.done: dict[str, Finished] = {}
        """The stages that have ended, by name."""
        self.names: Mapping[str, str] = {}
        """What the stages' runs are called, where they are not called as the stages are."""

    @property
    def wanted(self) -> bool:
        """Whether the workflow's file says so."""
        return self._workflow.registration is not None

    def __call__(self, runs: Runs, busy: Callable[[float], None]) -> None:
        """Register, and say so; what is refused for good is said too, and no reason to try again.

        Raises whatever else goes wrong. `busy` is told how long the server may take.
        """
        wanted = self._workflow.registration
        assert wanted is not None
        try:
            if self._registration is None:
                self._registration = Registration(self._storage, self._id, self._workflow, wanted, self.done)
            registry = Registry(runs.client, runs.experiment)
            found = self._registration.run(registry, lambda key: runs.find(self.names.get(key, key)), busy=busy)
            told = f"{wanted.stage}: {found}"
        except (UserError, NotFound) as error:
            told = f"the model is not registered as '{wanted.name}': {error}"
        except Exception as error:
            reason = unregistrable(error)
            if reason is None or runs.deleted():
                raise
            told = f"the model is not registered as '{wanted.name}': {reason}"
        self._registration = None
        print(told, flush=True)
