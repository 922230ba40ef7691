"""Notices that this machine is cut off from the rest of the cluster, which Ray takes many minutes for.

Ray's connections to a machine that has vanished without a word stay open until TCP or a keep-alive gives them up. A
driver that still reaches storage would hold its workflow for as long, with nobody to work for it.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LOOK_SECONDS = 3.0
ANSWER_SECONDS = 3.0
"""So long a machine has for taking a connection; others that are there take it within milliseconds."""
ISOLATED_SECONDS = 30.0
"""So long nobody may be reached."""
ASKED_AT_ONCE = 16
"""Of the other machines, where there are more: one that answers is enough."""
Address = tuple[str, int]


def answers(address: Address) -> bool:
    """Whether somebody takes a connection there."""
    try:
        with socket.create_connection(address, timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False


class Isolation:
    """For how long this machine has reached nobody: neither the cluster's head nor any other machine."""

    def __init__(self) -> None:
        self._others: list[Address] = []
        self._since: float | None = None

    def look(self, head: Address, others: Callable[[], Iterable[Address]], now: float) -> float:
        """Seconds. `others` is asked while the head answers, and remembered.

        A head that is away is no isolation: it comes back, and those who train do without it meanwhile. So where
        nobody else is known, nobody can tell.
        """
        if answers(head):
            self._others, self._since = list(others())[:ASKED_AT_ONCE], None
        elif not self._others or self._any_answers():
            self._since = None
        elif self._since is None:
            self._since = now
        return now - self._since if self._since is not None else 0.0

    def _any_answers(self) -> bool:
        with ThreadPoolExecutor(len(self._others)) as pool:
            return any(pool.map(answers, self._others))


class IsolationWatch:
    """Looks from a thread of its own, once this process is connected to Ray; tells `found` once. A context manager."""

    def __init__(self, found: Callable[[str], None]) -> None:
        self._found, self._closed = found, threading.Event()

    def __enter__(self) -> IsolationWatch:
        threading.Thread(target=self._run, name="isolation-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _run(self) -> None:
        isolation = Isolation()
        while not self._closed.wait(LOOK_SECONDS):
            ray = sys.modules.get("ray")
            if ray is None or not ray.is_initialized():
                continue
            try:
                seconds = isolation.look(_head(ray), lambda ray=ray: _others(ray), time.monotonic())
            except Exception as error:
                print(f"cannot look whether this machine is cut off: {error}", flush=True)
                continue
            if seconds >= ISOLATED_SECONDS and not self._closed.is_set():
                self._found(
                    f"its machine, {socket.gethostname()}, has reached neither the cluster's head nor any other "
                    f"machine for {seconds:.0f} s"
                )
                return


def _head(ray: Any) -> Address:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def _others(ray: Any) -> list[Address]:
    """Raylets that are neither on this machine nor on the head's."""
    head, own = _head(ray)[0], ray.get_runtime_context().get_node_id()
    return [
        (node["NodeManagerAddress"], node["NodeManagerPort"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != own and node["NodeManagerAddress"] != head
    ]
