"""Checkpoints are stored while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from stages.training.engine import Engine
from stages.training.loop import train
from stages.training.snapshot import Snapshot


class Held:
    """A storage whose first part of a checkpoint is not taken before `release`."""

    def __init__(self, storage) -> None:
        self._storage = storage
        self.begun: list[str] = []
        self.release = threading.Event()

    def __getattr__(self, name):
        return getattr(self._storage, name)

    @contextmanager
    def writer(self, key: str) -> Iterator:
        self.begun.append(key)
        if "/checkpoints/" in key:
            assert self.release.wait(300)
        with self._storage.writer(key) as sink:
            yield sink


def test_training_goes_on_while_a_checkpoint_is_stored_and_the_next_one_waits(make_stage, monkeypatch):
    fields = {"save_every": 3, "keep_last": 9}
    whole, stage = make_stage("whole"), make_stage("held")
    train(whole.job(**fields), whole.rank())
    storage = Held(stage.storage)
    made, taken = _counted(monkeypatch, Engine, "step"), _counted(monkeypatch, Snapshot, "take")
    seen: list[tuple[int, int, int, list[int]]] = []

    def look() -> None:
        _wait_until(lambda: made() >= 6 and storage.begun, seconds=120)
        # Long enough for another update, and for another upload to begin.
        time.sleep(0.5)
        seen.append((made(), taken(), len(storage.begun), list(stage.commits)))
        storage.release.set()

    looker = threading.Thread(target=look)
    looker.start()
    outcome = train(stage.job(**fields), replace(stage.rank(), storage=storage))
    looker.join()
    # Updates 4 to 6 came while the checkpoint of update 3 was on its way, and that of update 6 waited for it.
    assert seen == [(6, 1, 1, [])]
    assert outcome["outcome"] == "done"
    assert stage.commits == [3, 6, 8]
    # It holds what was there after update 3, although the weights have changed since.
    part = "rank-0000.safetensors"
    for update in stage.commits:
        kept, expected = f"{stage.kept[update]}/{part}", f"{whole.kept[update]}/{part}"
        assert stage.storage.read(kept) == whole.storage.read(expected)


def _counted(monkeypatch, owner: type, name: str) -> Callable[[], int]:
    """How often a method has returned from now on."""
    original, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        found = original(*arguments, **options)
        calls.append(None)
        return found

    monkeypatch.setattr(owner, name, counted)
    return lambda: len(calls)


def _wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
