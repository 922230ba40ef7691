"""What a folder promises beyond what tests/contract asks of every storage: nobody waits for a paused process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import Conflict
from cluster.storage.file import VERSIONS_KEPT, FileStorage
from tests.killed import killed_at_last

KEY = "folder/HEAD.json"
PAUSED = """
import os, signal, sys
from cluster.storage import Conflict
from cluster.storage.file import FileStorage

root, key, tag, moment = sys.argv[1:]
link = os.link

def paused(source, target):
    os.link = link
    if moment == "before the link":
        os.kill(os.getpid(), signal.SIGSTOP)
    link(source, target)
    if moment == "after the link":
        os.kill(os.getpid(), signal.SIGSTOP)

os.link = paused
try:
    FileStorage(root).compare_and_swap(key, b"of the paused one", tag)
    print("swapped")
except Conflict:
    print("conflict")
"""


def _swap(storage: FileStorage, body: bytes) -> str:
    return storage.compare_and_swap(KEY, body, storage.read_tagged(KEY)[1])


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(f"file://{tmp_path}")


@pytest.mark.parametrize("swapped_before", [0, 1])
@pytest.mark.parametrize("swapped_meanwhile", [1, VERSIONS_KEPT - 1, VERSIONS_KEPT, 2 * VERSIONS_KEPT])
@pytest.mark.parametrize(("moment", "outcome"), [("before the link", "conflict"), ("after the link", "swapped")])
def test_a_paused_process_keeps_nobody_out(
    storage: FileStorage, moment: str, outcome: str, swapped_before: int, swapped_meanwhile: int
):
    tag = storage.write(KEY, b"first")
    for _ in range(swapped_before):
        tag = _swap(storage, b"second")
    command = [sys.executable, "-c", PAUSED, storage.url, KEY, tag, moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, killed_at_last(process):
        try:
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            body = b"first" if not swapped_before else b"second"
            assert storage.read(KEY) == (body if moment == "before the link" else b"of the paused one")
            for k in range(swapped_meanwhile):
                _swap(storage, f"meanwhile {k}".encode())
        finally:
            process.send_signal(signal.SIGCONT)
        said = process.communicate()[0].strip()
    # One that won, and was then overtaken by more swaps than are kept, cannot know; it must not claim to have won.
    assert said == (outcome if swapped_meanwhile < VERSIONS_KEPT else "conflict")
    assert storage.read(KEY) == f"meanwhile {swapped_meanwhile - 1}".encode()


def test_of_a_key_that_is_swapped_some_versions_are_kept_and_the_newest_is_at_its_own_place(
    storage: FileStorage, tmp_path: Path
):
    storage.write(KEY, b"first")
    for k in range(3 * VERSIONS_KEPT):
        _swap(storage, f"body {k}".encode())
    assert (tmp_path / KEY).read_bytes() == storage.read(KEY) == f"body {3 * VERSIONS_KEPT - 1}".encode()
    assert list(storage.list("")) == [KEY]
    assert sum(path.is_file() for path in (tmp_path / ".patchline" / "versions").rglob("*")) == VERSIONS_KEPT
    assert not any((tmp_path / ".patchline" / "tmp").iterdir())


def test_a_key_that_was_swapped_is_written_removed_and_made_again(storage: FileStorage, tmp_path: Path):
    storage.write(KEY, b"first")
    old = _swap(storage, b"second")
    with pytest.raises(Conflict, match="another body"):
        storage.write_if_absent(KEY, b"third")
    tag = storage.write(KEY, b"third")
    assert storage.read_tagged(KEY) == (b"third", tag)
    assert (tmp_path / KEY).read_bytes() == b"third"
    with pytest.raises(Conflict, match="another body"):
        storage.compare_and_swap(KEY, b"fourth", old)
    storage.delete(KEY)
    assert storage.stat(KEY) is None
    with pytest.raises(Conflict, match="does not exist"):
        storage.compare_and_swap(KEY, b"fourth", tag)
    storage.write_if_absent(KEY, b"fifth")
    assert storage.read(KEY) == b"fifth"
