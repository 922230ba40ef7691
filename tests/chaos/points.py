"""The named points in a training worker, and what happens there: a SIGKILL where the plan has one.

Ray calls `install` in every process that it starts for a job of the harness. Nothing in the program knows of
this: the functions that stand at the points are replaced by ones that look into the plan first. A rank that is
not killed goes on with what it was at, the commit of a checkpoint for example, but begins no update and no
checkpoint any more: how far it came would depend on how fast Ray ends it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos.deferred import Deferred
from tests.chaos.plan import Disturbance, read

FOLDER = "PATCHLINE_CHAOS"
"""The variable that names the folder which plan, pids and log lie in."""
MANIFEST_FIRST = "PATCHLINE_CHAOS_MANIFEST_FIRST"
"""The variable that lets ranks break the rule on purpose: manifest and HEAD come before the parts."""


def install() -> None:
    """Let every rank that this process becomes look into the plan."""
    import pipeline.worker as worker

    original = worker.enter

    def enter(assignment: Any, place: Any) -> Any:
        _Points(Path(os.environ[FOLDER]), place.rank, assignment.checkpoint).patch()
        return original(assignment, place)

    worker.enter = enter


class _Points:
    """One rank's view of the plan."""

    def __init__(self, folder: Path, rank: int, checkpoint: str | None) -> None:
        self._folder, self._rank, self._checkpoint = folder, rank, checkpoint
        self._update, self._entered, self._doomed = 0, False, False
        self._done = len(list(folder.glob("done-*")))
        (folder / f"rank-{rank}").write_text(str(os.getpid()))
        if rank == 0:
            self._note(event="start", update=_update(checkpoint) if checkpoint else 0)

    def patch(self) -> None:
        from stages.training import checkpoint, engine, objectives

        self._wrap(engine.Engine, "step", self._step)
        self._wrap(objectives, "cross_entropy", self._in_update)
        self._wrap(checkpoint.Snapshot, "take", self._take)
        self._wrap(checkpoint.CheckpointWriter, "_commit", self._commit)
        if os.environ.get(MANIFEST_FIRST):
            self._wrap(checkpoint.CheckpointWriter, "_store", self._store_manifest_first)
        else:
            self._wrap(checkpoint.CheckpointWriter, "_write_part", self._write_part)

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *a, **o: wrapper(original, *a, **o))

    def _step(self, original: Any, engine: Any, *arguments: Any, seed: Any, **options: Any) -> Any:
        self._halt_if_doomed()
        self._update = seed[1]
        pending = original(engine, *arguments, seed=seed, **options)
        if self._rank == 0 and not self._entered:
            # The loss of an update that is not there yet would be no update.
            pending.report()
            self._entered = True
            self._note(event="first update", update=self._update)
        return pending

    def _in_update(self, original: Any, *arguments: Any, **options: Any) -> Any:
        loss = original(*arguments, **options)
        self._reached("update", self._update)
        return loss

    def _take(self, original: Any, snapshot: Any, pieces: Any) -> None:
        self._halt_if_doomed()
        if self._rank == 0:
            self._note(event="save", update=self._update)
        original(snapshot, pieces[: len(pieces) // 2])
        self._reached("snapshot", self._update)
        self._halt_if_doomed()
        original(snapshot, pieces)

    def _write_part(self, original: Any, writer: Any, prefix: str, snapshot: Any) -> None:
        storage, rank = writer._rank.storage, writer._rank

        class Watched:
            """The storage, up to the first bytes of the part's file."""

            def __getattr__(self, name: str) -> Any:
                return getattr(storage, name)

            @contextmanager
            def writer(_, key: str) -> Iterator[Any]:
                with storage.writer(key) as sink:
                    sink.write = self._after(sink.write, "upload", _update(prefix))
                    yield sink

        writer._rank = replace(rank, storage=Watched())
        try:
            original(writer, prefix, snapshot)
        finally:
            writer._rank = rank

    def _after(self, write: Callable[..., int], point: str, update: int) -> Callable[..., int]:
        def watched(data: Any) -> int:
            count = write(data)
            self._reached(point, update)
            # Whoever is not killed here comes no further: the rest of an upload would be a race against Ray.
            self._halt_if_doomed()
            return count

        return watched

    def _commit(self, original: Any, writer: Any, prefix: str, position: Any) -> None:
        storage, rank = writer._rank.storage, writer._rank

        class Watched:
            """The storage, up to the manifest."""

            def __getattr__(self, name: str) -> Any:
                return getattr(storage, name)

            def write(_, key: str, data: bytes) -> str:
                if key.endswith("/MANIFEST.json"):
                    self._reached("manifest", position.update)
                return storage.write(key, data)

        def commit_checkpoint(*arguments: Any) -> Any:
            self._reached("commit", position.update)
            dropped = rank.commit_checkpoint(*arguments)
            self._note(event="committed", update=position.update)
            self._reached("committed", position.update)
            return dropped

        writer._rank = replace(rank, storage=Watched(), commit_checkpoint=commit_checkpoint)
        try:
            original(writer, prefix, position)
        finally:
            writer._rank = rank

    def _store_manifest_first(self, original: Any, writer: Any, prefix: str, position: Any, snapshot: Any) -> None:
        rank, deferred = writer._rank, Deferred(writer._rank.storage)
        writer._rank = replace(rank, storage=deferred)
        original(writer, prefix, position, snapshot)
        writer._rank = rank
        self._reached("upload", position.update)
        deferred.upload()

    def _reached(self, point: str, update: int) -> None:
        planned = self._planned(point, update)
        if planned is not None:
            self._kill(planned)

    def _planned(self, point: str, update: int) -> Disturbance | None:
        """The next disturbance, where it is this one and this rank is the one that acts."""
        plan, done = read(self._folder), len(list(self._folder.glob("done-*")))
        # One disturbance an attempt: what a dying one comes to is no second one.
        if done == len(plan) or done > self._done:
            return None
        planned = plan[done]
        alone = point in ("manifest", "commit", "committed")
        actor = 1 if planned.victim == "rank 1" and not alone else 0
        return planned if (planned.point, planned.update) == (point, update) and self._rank == actor else None

    def _kill(self, planned: Disturbance) -> None:
        names = {"rank 0": ["rank-0"], "rank 1": ["rank-1"], "both ranks": ["rank-0", "rank-1"], "driver": ["driver"]}
        pids = {int((self._folder / name).read_text()) for name in names[planned.victim]}
        living = [pid for pid in pids if _lives(pid)]
        if len(living) == len(pids):
            number = len(list(self._folder.glob("done-*")))
            self._note(
                event="kill", number=number, point=planned.point, update=planned.update, victim=planned.victim,
                pids=living, checkpoint=self._checkpoint, at=self._update,
            )  # fmt: skip
            (self._folder / f"done-{number:03d}").touch()
        else:
            self._note(event="missed", point=planned.point, update=planned.update, victim=planned.victim)
        if len(living) < len(pids):
            return
        # This process last.
        for pid in sorted(living, key=lambda pid: pid == os.getpid()):
            os.kill(pid, signal.SIGKILL)
        self._doomed = True

    def _halt_if_doomed(self) -> None:
        if self._doomed:
            # Until Ray ends it, with the rest of the gang.
            threading.Event().wait()

    def _note(self, **fields: Any) -> None:
        with open(self._folder / "log.jsonl", "a") as log:
            log.write(json.dumps({"time": time.time(), "rank": self._rank, "pid": os.getpid(), **fields}) + "\n")


def _update(prefix: str) -> int:
    """Of a checkpoint's key prefix."""
    return int(prefix.rsplit("/", 1)[1].split("-")[0])


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
