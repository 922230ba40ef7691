"""Processes that outlive us: started in a session of their own, known by id and start time, stopped by id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 10.0
FOREIGN = ("AWS_", "MLFLOW_", "RAY_")
"""Beginnings of the variables that speak of the user's other clusters, buckets and trackers."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process group that we started. The start time tells it from a later process with the same id."""

    pid: int
    started: str
    log: str

    @property
    def alive(self) -> bool:
        """Whether the group's leader runs."""
        return _started(self.pid) == self.started


def start(command: Sequence[str], *, environment: Mapping[str, str], log: Path, folder: Path) -> Process:
    """Start a command in the background; its output is added to `log`, which the owner alone can read.

    It has our environment, without what there is for other servers than ours, and `environment`.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            list(command),
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            cwd=folder,
        )
    finally:
        os.close(descriptor)
    return Process(pid=process.pid, started=_started(process.pid) or "", log=str(log))


def stop(*processes: Process) -> list[Process]:
    """End process groups: SIGTERM, then SIGKILL. Returns those that were running. Never another's process."""
    running = [process for process in processes if process.alive]
    members = _family({process.pid: process.started for process in running})
    for process in running:
        _signal(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(_started(pid) == began for pid, began in members.items()):
        for process in running:
            _reap(process.pid)
        # What a server starts while it ends belongs to it too.
        members = _family(members)
        time.sleep(0.1)
    for pid, began in members.items():
        # It may end, and be collected, between the two.
        with suppress(ProcessLookupError):
            if _started(pid) == began:
                os.kill(pid, signal.SIGKILL)
    for process in running:
        _reap(process.pid)
    return running


FIRST_PORT, BLOCK, BLOCKS = 21000, 16, 687
"""Ports are taken from blocks below the range that connections take theirs from."""
_CLAIMS: dict[int, socket.socket] = {}
"""What keeps other processes out of this one's blocks, for as long as it runs: its servers listen by then."""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on, and that no other process is given meanwhile."""
    assert count <= BLOCK, f"{count} ports do not fit into a block of {BLOCK}"
    first = int.from_bytes(os.urandom(2)) % BLOCKS
    for block in (*range(first, BLOCKS), *range(first)):
        claim = _claim(block)
        if claim is None:
            continue
        start = FIRST_PORT + block * BLOCK
        found = [port for port in range(start, start + BLOCK) if _is_free(port)]
        if len(found) >= count:
            _CLAIMS[block] = claim
            return found[:count]
        claim.close()
    raise OSError(f"no {count} free ports from {FIRST_PORT} to {FIRST_PORT + BLOCKS * BLOCK}")


def take_again(ports: Sequence[int]) -> bool:
    """Whether these ports, which `free_ports` once gave, are free; if so, no other process is given them meanwhile."""
    block = (min(ports) - FIRST_PORT) // BLOCK
    claim = _CLAIMS.get(block) or _claim(block)
    if claim is None:
        return False
    # Connections to a killed server linger for a minute; who listens next may.
    if all(_is_free(port, lingering=True) for port in ports):
        _CLAIMS[block] = claim
        return True
    if block not in _CLAIMS:
        claim.close()
    return False


def _claim(block: int) -> socket.socket | None:
    claim = socket.socket(socket.AF_UNIX)
    try:
        # A name in Linux's abstract space: no file, and gone with the process.
        claim.bind(f"\0patchline-ports-{block}")
    except OSError:
        claim.close()
        return None
    return claim


def _is_free(port: int, *, lingering: bool = False) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(lingering))
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> None:
    """Collect our own child, where the stack is stopped by the process that started it."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _started(pid: int) -> str | None:
    """The start time of a process in clock ticks since boot, or None where it does not run."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def _family(known: Mapping[int, str]) -> dict[int, str]:
    """Start times of known processes and of all that came of them, those in sessions of their own included.

    A process whose parents have ended is found by its session, which bears the id of a known one: an id is
    not given again while a session has it.
    """
    running = {}
    for entry in Path("/proc").iterdir():
        fields = _stat(int(entry.name)) if entry.name.isdigit() else None
        if fields is not None and fields[0] != "Z":
            running[int(entry.name)] = fields
    # Not those whose id has been given to somebody else since.
    found = {pid: began for pid, began in known.items() if pid not in running or running[pid][19] == began}
    size = 0
    while len(found) > size:
        size = len(found)
        for pid, (_, parent, _, session, *rest) in running.items():
            if int(parent) in found or int(session) in found:
                found.setdefault(pid, rest[15])
    return found


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on, or None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
