"""The plan of a workflow, made beside it: a source of a million images takes a while to list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.provenance import plan_text

PLAN_SECONDS = 20.0
"""How long the end of a workflow waits for its plan."""


class ShownPlan:
    """Makes the plan's text in a thread and hands it over."""

    def __init__(self, storage: Storage, workflow: Workflow, owner: str, hand_over: Callable[[str], None]) -> None:
        self._storage, self._workflow, self._owner, self._hand_over = storage, workflow, owner, hand_over
        self._thread = threading.Thread(target=self._make, name="plan", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, hurry: threading.Event) -> None:
        """A short workflow may be over before its plan is made, which nobody makes later."""
        until = time.monotonic() + PLAN_SECONDS
        while self._thread.is_alive() and not hurry.is_set() and time.monotonic() < until:
            self._thread.join(0.1)
        if self._thread.is_alive() and not hurry.is_set():
            print(f"MLflow is given no plan.txt: it took more than {PLAN_SECONDS:.0f} s to make", flush=True)

    def _make(self) -> None:
        try:
            text = plan_text(self._storage, self._workflow, self._owner)
        except Exception as error:
            # What is wrong with the workflow, or with storage, the stages themselves tell.
            text = f"no plan could be made: {error}\n"
        self._hand_over(text)
