"""gc over and over beside stages that save and write parts, workflows that wait for each other, and deletions."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.storage import Storage, open_storage
from pipeline.driver import create
from pipeline.head import LeaseLost, commit_checkpoint, read_head
from pipeline.kinds import KINDS
from pipeline.record import listed
from pipeline.removal import delete
from pipeline.settings import Settings
from stages.config import placement
from stages.context import Context, Inputs, Result
from tests.unit.pipeline import test_collection_races
from tests.unit.pipeline.interposed import interposed
from tests.unit.pipeline.test_collection_races import (  # noqa: F401
    check_whole,
    collect,
    drive,
    flow,
    folder_of,
    run,
    toys,
)
from tests.unit.pipeline.toys import Source

UPDATES = 4


class Saving(Source):
    """Writes a part and a checkpoint at each update, goes on from the newest one, and may break in between."""

    kind: ClassVar[str] = "saving"
    breaks: int = placement(0, "update at which the first attempt breaks, between a checkpoint's bytes and its commit")

    @classmethod
    def function(cls) -> Any:
        return run_saving


def run_saving(config: Saving, inputs: Inputs, context: Context) -> Result:
    storage, folder = context.storage, context.folder
    document = head(storage, folder)
    begun = document.checkpoint.update if document.checkpoint is not None else 0
    for update in range(begun + 1, UPDATES + 1):
        storage.write(f"{folder}/parts/{update:06d}.json", b"part")
        prefix = f"{folder}/checkpoints/{update:08d}-a{context.attempt}"
        before = storage.read(f"{checkpoint(storage, folder)}/state") if update > 1 else b""
        storage.write(f"{prefix}/state", before + str(update).encode())
        storage.write(f"{prefix}/MANIFEST.json", b"{}")
        if context.attempt == 1 and update == config.breaks:
            raise ConnectionError("cable pulled")
        commit_checkpoint(storage, folder, document.epoch, context.attempt, prefix, update, list)
    state = storage.read(f"{checkpoint(storage, folder)}/state")
    return Result(output=context.commit("text", [context.write("text", state)], {}))


def head(storage: Storage, folder: str) -> Any:
    found = read_head(storage, folder)
    assert found is not None
    return found[0]


def checkpoint(storage: Storage, folder: str) -> str:
    return head(storage, folder).checkpoint.prefix


@pytest.fixture(autouse=True)
def saving(toys: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(KINDS, Saving.kind, Saving)
    # Nobody is killed here, so that no lease has to run out.
    monkeypatch.setattr(test_collection_races, "LEASE", 30.0)
    monkeypatch.setattr("pipeline.removal.LEASE_SECONDS", 60.0)


@pytest.mark.parametrize("breaks", [0, 3])
def test_gc_before_every_call_of_a_stage_that_saves(tmp_path: Path, breaks: int):
    """Between a checkpoint's bytes and its commit too, and between the parts of a data set."""
    url = f"file://{tmp_path}/root"
    calls: list[str] = []

    def hook(number: int, name: str, key: str) -> None:
        calls.append(name)
        collect(open_storage(url))

    storage, _ = interposed(open_storage(url), hook)
    workflow = flow(Saving(breaks=breaks))
    create(storage, workflow, "mine")
    assert drive(storage, "mine") == "done"
    collect(open_storage(url))
    plain = open_storage(url)
    check_whole(plain, "mine")
    folder = folder_of(plain, "mine", "first")
    document = head(plain, folder)
    assert [item.update for item in document.checkpoints] == [1, 2, 3, 4]
    assert [plain.read(f"{item.prefix}/state") for item in document.checkpoints] == [b"1", b"12", b"123", b"1234"]
    assert len(list(plain.list(f"{folder}/parts/"))) == UPDATES
    # What the broken attempt left uncommitted is gone, and nothing else.
    assert len(plain.list_folders(f"{folder}/checkpoints/")) == UPDATES
    assert len(calls) > 60


def test_many_workflows_that_wait_for_each_other_beside_two_collections_and_deletions(tmp_path: Path):
    url, stop, errors = f"file://{tmp_path}/root", threading.Event(), list[BaseException]()
    settings = Settings(root=url, mlflow="")

    def guarded(act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except BaseException as error:
            errors.append(error)

    def collecting() -> None:
        while not stop.is_set():
            collect(open_storage(url))

    def working(number: int) -> None:
        storage = open_storage(url)
        for times in (1, 2, 3):
            # All want the first stage, two each of the second ones.
            run(storage, flow(Saving(), times=1 + (number + times) % 3), f"flow-{number}-{times}")
            if times < 3:
                with contextlib.suppress(LeaseLost):
                    delete(f"flow-{number}-{times}", settings)

    collectors = [threading.Thread(target=guarded, args=(collecting,)) for _ in range(2)]
    workers = [threading.Thread(target=guarded, args=(working, number)) for number in range(3)]
    for thread in (*collectors, *workers):
        thread.start()
    for thread in workers:
        thread.join(480)
    stop.set()
    for thread in collectors:
        thread.join(480)
    assert errors == []
    storage = open_storage(url)
    last = [f"flow-{number}-3" for number in range(3)]
    assert {name: listed(storage)[name] for name in last} == dict.fromkeys(last, "done")
    check_whole(storage, *last)
