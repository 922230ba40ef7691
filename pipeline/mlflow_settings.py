"""How MLflow's client has to behave while we use it. In a user's own process everything is as it was afterwards."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.environment import in_force

OURS = {
    # It would greet the log with every run's address.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
UNLESS_SET = {
    # Trying again is ours: MLflow's own retries would keep quiet about an absent server for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
CHATTY = "mlflow.store.db.utils"
"""The logger that tells of each table of a new database."""

_lock = threading.Lock()
_users = 0
_kept: Iterator[None] | None = None


@contextmanager
def client_settings() -> Iterator[None]:
    """Within it MLflow's client is quiet and quick to fail; of several threads, until the last one has left it.

    Addresses, active runs and names of runs in the environment are the user's, and are not touched.
    """
    global _users, _kept
    with _lock:
        _users += 1
        if _users == 1:
            _kept = _settings()
            next(_kept)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _kept is not None:
                next(_kept, None)


def _settings() -> Iterator[None]:
    logger = logging.getLogger(CHATTY)
    level = logger.level
    own = {name: value for name, value in UNLESS_SET.items() if name not in os.environ}
    with in_force({**OURS, **own}):
        logger.setLevel(logging.WARNING)
        yield
        logger.setLevel(level)
