"""Checkpoints: parameter by parameter, each rank writing its share, committed last.

Below `checkpoints/<update>-a<attempt>/`:
- `rank-<r>.safetensors`: the fp32 weights and optimizer tensors of the parameters that rank r was given,
  as `<parameter>/weight`, `<parameter>/exp_avg`, ...;
- `part-<r>.json`: that rank's file with its size and sha256, written after it;
- `MANIFEST.json`: all parts, the update and the data cursor, written by rank 0 when every part is there.

Only then is the checkpoint committed (a change of HEAD), so a reader that follows HEAD never sees half
of one. Nothing is pickled. Any world size, ZeRO stage and optimizer reads the same form.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cluster.errors import check_format
from cluster.storage.base import NotFound, Storage, file_digest
from stages.context import Rank, canonical_json
from stages.metrics import MetricWriter
from stages.training.engine import Engine

FORMAT = 1
PART_TIMEOUT = 1800.0
"""Seconds that rank 0 waits for the other ranks' parts before it gives the attempt up."""


def share(sizes: list[int], ranks: int) -> list[int]:
    """The rank that writes each parameter: largest first, always to the rank that has least so far."""
    loads, owners = [0] * ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = loads.index(min(loads))
        owners[index] = rank
        loads[rank] += sizes[index]
    return owners


class CheckpointWriter:
    """Saves checkpoints of one attempt. One upload at a time is outstanding; its errors surface at `wait`."""

    def __init__(self, rank: Rank, metrics: MetricWriter | None) -> None:
        self._rank, self._metrics = rank, metrics
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, engine: Engine, update: int, cursor: int) -> None:
        """Copy this rank's share out of the engine, then store and commit it in the background.

        Collective, and called only when every update up to this one is known to be finite.
        """
        self.wait()
        owners = share([engine.size(name) for name in engine.names], self._rank.world_size)
        tensors: dict[str, Tensor] = {}
        for name, owner in zip(engine.names, owners, strict=True):
            for key, value in engine.read(name):
                if owner == self._rank.rank:
                    tensors[f"{name}/{key}"] = value
        prefix = f"{self._rank.folder}/checkpoints/{update:08d}-a{self._rank.attempt}"
        self._thread = threading.Thread(target=self._store, args=(prefix, update, cursor, tensors), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the outstanding checkpoint is stored (on rank 0: committed). Raises what went wrong."""
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Let the outstanding checkpoint finish, well or not: where training failed, it is worth keeping."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _store(self, prefix: str, update: int, cursor: int, tensors: dict[str, Tensor]) -> None:
        try:
            self._write_part(prefix, tensors)
            if self._rank.rank == 0:
                parts = self._wait_for_parts(prefix)
                manifest = {
                    "format": FORMAT,
                    "kind": "checkpoint",
                    "update": update,
                    "cursor": cursor,
                    "attempt": self._rank.attempt,
                    "parts": parts,
                }
                self._rank.storage.write(f"{prefix}/MANIFEST.json", canonical_json(manifest))
                if self._metrics is not None:
                    # A committed checkpoint promises that the curves up to it are stored as well.
                    self._metrics.flush()
                self._rank.commit_checkpoint(prefix, update)
        except BaseException as error:
            self._error = error

    def _write_part(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        name = f"rank-{self._rank.rank:04d}.safetensors"
        with tempfile.TemporaryDirectory(prefix="patchline-") as folder:
            path = Path(folder) / name
            save_file(tensors, path)
            digest = self._rank.storage.upload(f"{prefix}/{name}", path)
        part = {"path": name, "bytes": digest.bytes, "sha256": digest.sha256}
        self._rank.storage.write(f"{prefix}/part-{self._rank.rank:04d}.json", canonical_json(part))

    def _wait_for_parts(self, prefix: str) -> list[dict[str, Any]]:
        deadline, parts = time.monotonic() + PART_TIMEOUT, []
        for rank in range(self._rank.world_size):
            while True:
                try:
                    parts.append(json.loads(self._rank.storage.read(f"{prefix}/part-{rank:04d}.json")))
                    break
                except NotFound:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"rank {rank} did not store its part of {prefix}") from None
                    time.sleep(0.05)
        return parts


def read_manifest(storage: Storage, prefix: str) -> dict[str, Any]:
    """The manifest of a committed checkpoint. Raises UserError for a newer format."""
    manifest = json.loads(storage.read(f"{prefix}/MANIFEST.json"))
    check_format(manifest["format"], FORMAT, prefix)
    return manifest


def read_tensors(storage: Storage, prefix: str, manifest: dict[str, Any]) -> Iterator[tuple[str, str, Tensor]]:
    """All tensors as (parameter, "weight" or state name, fp32 tensor), one part in memory at a time.

    Raises ValueError where a part is not the one that the manifest lists.
    """
    for part in manifest["parts"]:
        with tempfile.TemporaryDirectory(prefix="patchline-") as folder:
            path = Path(folder) / part["path"]
            storage.download(f"{prefix}/{part['path']}", path)
            found = file_digest(path).sha256
            if found != part["sha256"]:
                raise ValueError(f"{prefix}/{part['path']} has sha256 {found}; its manifest says {part['sha256']}")
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    name, _, state = key.rpartition("/")
                    yield name, state, tensors.get_tensor(key)


def drop_state(tensors: Iterator[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
    """The weights alone, by parameter."""
    return {name: value for name, state, value in tensors if state == "weight"}
