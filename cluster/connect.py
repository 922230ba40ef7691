"""This process's connection to a Ray cluster, made when it is first needed."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from cluster.errors import UserError
from cluster.signals import kept_handlers

_LOCK = threading.Lock()


def connect() -> Any:
    """The `ray` module, connected to the cluster that RAY_ADDRESS names (which Ray sets for its jobs).

    Without an address no cluster is started by accident: raises UserError.
    """
    import ray

    with _LOCK:
        _initialize(ray)
    return ray


def _initialize(ray: Any) -> None:
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            raise UserError("no Ray cluster: RAY_ADDRESS is not set; submit the workflow to a cluster, or run it here")
        with kept_handlers():
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)


def disconnect() -> None:
    """End the connection, if there is one."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
