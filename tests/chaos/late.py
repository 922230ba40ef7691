"""A rank 0 that holds the commit of a checkpoint back until it is told to go on: what a slow machine does by itself.

Ray calls `install` in every process that it starts on machines whose environment has `HOOK`. What is asked of it, and
what comes of it, are files in the machine's own temporary folder.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

HOOK = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "tests.chaos.late.install"}
HOLD, HELD, GO_ON, OUTCOME = "hold-commit", "commit-is-held", "commit-may-go-on", "commit-outcome"


def install() -> None:
    """Replace the commit of a checkpoint in every rank that this process becomes."""
    import pipeline.worker as worker

    original = worker.commit_checkpoint

    def commit(
        storage: Any, folder: str, epoch: int, attempt: int, prefix: str, update: int, *rest: Any, **more: Any
    ) -> Any:
        held = (_folder() / HOLD).exists()
        if held:
            _wait(prefix)
        try:
            dropped = original(storage, folder, epoch, attempt, prefix, update, *rest, **more)
        except Exception as error:
            if held:
                _note(OUTCOME, type(error).__name__)
            raise
        if held:
            _note(OUTCOME, "committed")
        return dropped

    worker.commit_checkpoint = commit


def _wait(prefix: str) -> None:
    _note(HELD, prefix)
    while not (_folder() / GO_ON).exists():
        time.sleep(0.1)


def _note(name: str, text: str) -> None:
    part = _folder() / f"{name}.{os.getpid()}"
    part.write_text(text)
    part.replace(_folder() / name)


def _folder() -> Path:
    return Path(tempfile.gettempdir())
