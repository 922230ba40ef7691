"""Several real ranks on this machine, without Ray: processes that train together through gloo."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.storage import Storage, open_storage
from stages.context import Keep, Rank, Rollback, StopRequest
from stages.training.job import Job
from stages.training.loop import train
from stages.training.restore import CheckpointFiles
from tests.ports import next_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.unit.stages.training.preload"])


def run_ranks(
    job: Job,
    url: str,
    folder: str,
    *,
    ranks: int,
    attempt: int,
    notes: Path,
    stop_after: int | None = None,
    rollbacks: tuple[Rollback, ...] = (),
) -> dict[str, Any]:
    """Train on `ranks` processes from the newest checkpoint, for `stop_after` updates; returns rank 0's outcome.

    `notes` is a folder for what the ranks leave behind: the committed checkpoints (`kept.json`, by update), each
    rank's samples (`samples-<attempt>-<rank>.json`, by update).
    """
    processes = start_ranks(
        job, url, folder, ranks=ranks, attempt=attempt, notes=notes, stop_after=stop_after, rollbacks=rollbacks
    )
    codes = end_of(processes)
    assert codes == [0] * ranks, f"ranks ended with {codes}"
    return json.loads((notes / "outcome.json").read_text())


def start_ranks(
    job: Job,
    url: str,
    folder: str,
    *,
    ranks: int,
    attempt: int,
    notes: Path,
    stop_after: int | None = None,
    rollbacks: tuple[Rollback, ...] = (),
) -> list[Any]:
    """The same, without waiting: returns the processes."""
    port = next_port()
    arguments = [(job, url, folder, ranks, rank, attempt, notes, stop_after, rollbacks, port) for rank in range(ranks)]
    processes = [SERVER.Process(target=_rank, args=own) for own in arguments]
    for process in processes:
        process.start()
    return processes


def end_of(processes: list[Any], seconds: float = 120) -> list[int | None]:
    """The exit codes of processes; None of those that had to be ended, since they did not end by themselves."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def _rank(
    job: Job,
    url: str,
    folder: str,
    ranks: int,
    rank: int,
    attempt: int,
    notes: Path,
    stop_after: int | None,
    rollbacks: tuple[Rollback, ...],
    port: int,
) -> None:
    place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    kept, calls = _read(notes / "kept.json"), 0

    def commit(prefix: str, update: int, keep: Keep) -> Sequence[str]:
        kept[str(update)] = prefix
        (notes / "kept.json").write_text(json.dumps(kept))
        return []

    def stop() -> StopRequest | None:
        nonlocal calls
        calls += 1
        return StopRequest(reason="cancelled") if stop_after and calls >= stop_after else None

    newest = max(kept, key=int, default=None)
    own = Rank(
        rank=rank, world_size=ranks, local_rank=rank, storage=open_storage(url), folder=folder, attempt=attempt,
        checkpoint=kept[newest] if newest else None, commit_checkpoint=commit, stop_requested=stop, rollbacks=rollbacks,
    )  # fmt: skip
    _note_samples(notes / f"samples-{attempt}-{rank}.json")
    _note_fetches(notes / f"fetched-{attempt}-{rank}")
    outcome = train(job, own)
    if rank == 0:
        (notes / "outcome.json").write_text(json.dumps(outcome))


def _note_samples(path: Path) -> None:
    """Write down which samples the engine is given, update by update."""
    from stages.training.engine import Engine

    step, samples = Engine.step, {}

    def noted(self: Engine, batch: Any, *arguments: Any, seed: Any, **options: Any) -> Any:
        samples[seed[1]] = batch.samples.tolist()
        path.write_text(json.dumps(samples))
        return step(self, batch, *arguments, seed=seed, **options)

    Engine.step = noted


def _note_fetches(path: Path) -> None:
    """Leave an empty file where this rank brings a checkpoint here."""
    fetch = CheckpointFiles.fetch

    def noted(self: CheckpointFiles, storage: Storage, prefix: str) -> None:
        path.touch()
        fetch(self, storage, prefix)

    CheckpointFiles.fetch = noted


def _read(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.exists() else {}
