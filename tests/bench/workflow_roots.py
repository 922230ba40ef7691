"""Large roots for `tests.bench.workflow`: many workflows and many records, in a folder and in a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.storage import Storage
from pipeline.config import load_workflow
from pipeline.head import HeadDocument
from pipeline.record import Event
from stages.metrics import now_ms

WORKFLOWS, RECORDS = 10_000, 1_000_000
RUNNING = 50
"""Workflows, of all, that run: `list` asks for a sign of life of each."""
FOLDERS = 100_000
"""Stage folders that the records lie in."""


def workflow_ids() -> list[str]:
    return [f"digits-20260101-{number:06d}-{number % 65536:04x}" for number in range(WORKFLOWS)]


def bodies(number: int, name: str) -> Iterator[tuple[str, bytes]]:
    """Five keys of a workflow: its index entry, file, HEAD, one event and its driver."""
    state = "running" if number < RUNNING else "done"
    head = HeadDocument(
        owner="bench", epoch=1, nonce=f"{number:016x}", ttl_seconds=3600, state=state, renewed_ms=now_ms()
    )
    event = Event(number=0, time_ms=now_ms(), type="workflow_started", epoch=1, data={"owner": "bench", "driver": 0})
    yield f"index/states/{name}.000001.000002-{state}", b""
    yield f"workflows/{name}/workflow.yaml", FILE
    yield f"workflows/{name}/HEAD.json", head.body()
    yield f"workflows/{name}/events/000000.json", event.model_dump_json().encode()
    yield f"workflows/{name}/drivers/0000", b"bench"


FILE = load_workflow("digits").to_yaml().encode()


def fill_folder(root: Path) -> None:
    """As `FileStorage` lays them out, without its care for power cuts, which would take hours."""
    for number, name in enumerate(workflow_ids()):
        for key, body in bodies(number, name):
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    for folder in range(FOLDERS):
        path = root / "stages" / "ingest" / f"{folder:020x}"
        path.mkdir(parents=True)
        # Links, since a million bodies would say nothing more; each is a file of the folder's own.
        first = path / "record-1.json"
        first.write_bytes(b'{"format": 1}')
        for record in range(2, 1 + RECORDS // FOLDERS):
            os.link(first, path / f"record-{record}.json")


def fill_bucket(storage: Storage) -> int:
    """The same workflows in a bucket; returns the number of keys."""
    items = [item for number, name in enumerate(workflow_ids()) for item in bodies(number, name)]
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda item: storage.write(*item), items):
            pass
    return len(items)
