"""Workflows to report on: a small one on the real digits that has run, and one whose training was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage import Storage, open_storage
from pipeline.config import parse_workflow
from pipeline.driver import create
from pipeline.head import Head, commit_checkpoint
from pipeline.record import EventLog, mark
from stages.metrics import Point, points_body
from tests.unit.pipeline.finished import run_to_its_end

FLOW = """
name: small
description: Digits, <script>alert("boo")</script> & more
stages:
  ingest: {source: {kind: digits}, samples_per_shard: 400, held_out_classes: 3, validation_fraction: 0.1}
  pretrain:
    data: ingest
    model: {width: 16, depth: 1, num_heads: 2, mlp_dim: 32, patch_size: 4}
    resolution: 16
    updates: 12
    global_batch: 32
    warmup_updates: 2
    input: {streams: 1, window: 256, loader_threads: 1}
    workers: 0
    save_every: 5
    log_every: 1
    evaluate_every: 4
  fewshot: {data: ingest, from: pretrain, shots: [1, 5], draws: 3}
  analyze: {data: ingest, from: pretrain, images: 8, examples: 4}
"""
BEGAN_MS = 1_700_000_000_000
FOLDER = "stages/pretrain/0123456789abcdef0123"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, str]:
    """The root of a workflow that has run to its end, and its id."""
    folder, workflow_id = run_to_its_end(tmp_path_factory.mktemp("small"), parse_workflow(FLOW, "small.yaml"))
    return open_storage(f"file://{folder}"), workflow_id


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Storage, str, Head]:
    """A workflow whose training was killed at update 57, after a checkpoint at 50, and went on; its id and lease.

    An update takes two seconds. Attempt 2 began at update 50, ten seconds after the last point of attempt 1.
    """
    storage = open_storage(f"file://{tmp_path}/root")
    workflow_id = create(storage, parse_workflow(FLOW, "small.yaml", ("pretrain.updates=100",)))
    own = Head.acquire(storage, f"workflows/{workflow_id}", f"{workflow_id}/mill/1/ab", ttl=3600)
    head = Head.acquire(storage, FOLDER, f"{workflow_id}/mill/1/ab", ttl=3600)
    assert own is not None
    assert head is not None
    mark(storage, workflow_id, "running", 1)
    events = Told(storage, workflow_id)
    events.tell(0, "workflow_started", owner="driver", driver=None)
    events.tell(0, "stage_started", "pretrain", folder=FOLDER)
    head.new_attempt()
    events.tell(0, "attempt_started", "pretrain", attempt=1, folder=FOLDER, checkpoint=None, differs=[])
    events.tell(0, "stage_length", "pretrain", updates=100)
    points(storage, 1, range(1, 58))
    prefix = f"{FOLDER}/checkpoints/00000050-a1"
    commit_checkpoint(storage, FOLDER, head.epoch, 1, prefix, 50, lambda updates: updates)
    head.new_attempt()
    events.tell(124, "workflow_started", owner="driver", driver=None)
    checkpoint = {"prefix": prefix, "update": 50}
    differs = ["torch: 2.12.0 → 2.13.0"]
    events.tell(124, "attempt_started", "pretrain", attempt=2, folder=FOLDER, checkpoint=checkpoint, differs=differs)
    points(storage, 2, range(51, 61), later=20)
    return storage, workflow_id, own


class Told(EventLog):
    """Events at times of a test's own."""

    def tell(self, seconds: float, type_: str, stage: str | None = None, **data: object) -> None:
        event = self.append(type_, stage, **data)
        moved = event.model_copy(update={"time_ms": BEGAN_MS + int(1000 * seconds)})
        self._storage.write(self._key(event.number), moved.model_dump_json().encode())


def points(storage: Storage, attempt: int, updates: range, *, later: float = 0) -> None:
    """The loss of these updates, update u measured 2u seconds after the beginning and `later`; above 50 it differs."""
    found = [
        Point(name="train/loss", value=2.0 / step + attempt * (step > 50), step=step,
              time_ms=BEGAN_MS + int(1000 * (2 * step + later)))
        for step in updates
    ]  # fmt: skip
    storage.write(f"{FOLDER}/attempts/{attempt}/metrics/000000.jsonl", points_body(found))
