"""Writing checkpoints: each rank what it holds, by parameter, committed last.

Below `checkpoints/<update>-a<attempt>/`:
- `rank-<r>.safetensors`: the pieces of the fp32 weights and optimizer tensors that rank r holds,
  as `<parameter>/weight`, `<parameter>/exp_avg`, ... (see `snapshot.py`);
- `part-<r>.json`: that rank's file with its size and sha256, written after it;
- `MANIFEST.json`: all parts and the position of the run, written by rank 0 when every part is there.

Only then is the checkpoint committed (a change of HEAD), so a reader that follows HEAD never sees half
of one. Nothing is pickled. Any world size, ZeRO stage and optimizer reads the same form.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from cluster.errors import check_format
from cluster.storage.base import NotFound
from cluster.storage.many import at_once
from stages.context import Keep, Rank, canonical_json
from stages.metrics import MetricWriter
from stages.training.engine import Engine
from stages.training.keeping import checkpoint_prefix, delete_checkpoint
from stages.training.manifest import FORMAT, Position, with_digest
from stages.training.snapshot import Snapshot

PART_FORMAT = 1
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks at a part that is not there yet; each pause is twice the one before."""
PART_TIMEOUT = 1800.0
"""Seconds that rank 0 waits for the other ranks' parts before it gives the attempt up."""


class CheckpointWriter:
    """Saves checkpoints of one attempt. One upload at a time is outstanding; its errors surface at `wait`."""

    def __init__(self, rank: Rank, metrics: MetricWriter | None, about: dict[str, Any], keep: Keep) -> None:
        self._rank, self._metrics, self._about, self._keep = rank, metrics, about, keep
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds_stored = 0.0
        """How long the newest checkpoint took from its snapshot to its commit, on rank 0."""

    def save(self, engine: Engine, position: Position) -> None:
        """Copy what this rank holds out of the engine, then store and commit it in the background.

        Every rank calls it after the same update, and only when every update up to this one is known to be finite.
        Waits for the checkpoint before it, whose copy's memory it uses.
        """
        self.wait()
        self._snapshot = self._snapshot or Snapshot(engine.device)
        self._snapshot.take(engine.tensors.own(self._rank.world_size, self._rank.rank))
        prefix = checkpoint_prefix(self._rank.folder, position.update, self._rank.attempt)
        self._thread = threading.Thread(target=self._store, args=(prefix, position, self._snapshot), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the outstanding checkpoint is stored (on rank 0: committed). Raises what went wrong."""
        self.settle()
        self.check()

    def check(self) -> None:
        """Raise what has gone wrong with the outstanding checkpoint so far. Waits for nothing."""
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Let the outstanding checkpoint finish, well or not: where training failed, it is worth keeping."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _store(self, prefix: str, position: Position, snapshot: Snapshot) -> None:
        began = time.monotonic()
        try:
            self._write_part(prefix, snapshot)
            if self._rank.rank == 0:
                self._commit(prefix, position)
                self.seconds_stored = time.monotonic() - began
        except BaseException as error:
            self._error = error

    def _write_part(self, prefix: str, snapshot: Snapshot) -> None:
        name = f"rank-{self._rank.rank:04d}.safetensors"
        with self._rank.storage.writer(f"{prefix}/{name}") as sink:
            snapshot.write(sink)
        digest = sink.digest
        assert digest is not None
        part = {"format": PART_FORMAT, "path": name, "bytes": digest.bytes, "sha256": digest.sha256}
        self._rank.storage.write(f"{prefix}/part-{self._rank.rank:04d}.json", canonical_json(part))

    def _commit(self, prefix: str, position: Position) -> None:
        keys = [f"{prefix}/part-{rank:04d}.json" for rank in range(self._rank.world_size)]
        parts = at_once(self._wait_for_part, keys)
        manifest = {
            "format": FORMAT,
            "kind": "checkpoint",
            **asdict(position),
            "about": self._about,
            "identity": PurePath(self._rank.folder).name,
            "attempt": self._rank.attempt,
            "world_size": self._rank.world_size,
            "parts": parts,
        }
        self._rank.storage.write(f"{prefix}/MANIFEST.json", canonical_json(with_digest(manifest)))
        if self._metrics is not None:
            # A committed checkpoint promises that the curves up to it are stored as well.
            self._metrics.flush()
        dropped = self._rank.commit_checkpoint(prefix, position.update, self._keep)
        try:
            for old in dropped:
                delete_checkpoint(self._rank.storage, old)
        except Exception as error:
            # What counts is committed; the next attempt's collection finds what is left.
            print(f"an old checkpoint stays for now: {error}", flush=True)

    def _wait_for_part(self, key: str) -> dict[str, Any]:
        deadline, pause = time.monotonic() + PART_TIMEOUT, FIRST_PAUSE
        while True:
            try:
                part = json.loads(self._rank.storage.read(key))
            except NotFound:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{key} was not stored within {PART_TIMEOUT:.0f} s") from None
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            check_format(part.pop("format", PART_FORMAT), PART_FORMAT, key)
            return part
