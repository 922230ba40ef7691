"""What every storage promises: the same cases over a local folder and over a real S3 server."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.storage import Conflict, NotFound, Storage, open_storage
from tests.killed import killed_at_last

WRITERS = 8
ROUNDS = 12


def test_a_body_comes_back_with_size_and_tag(any_storage: Storage):
    tag = any_storage.write("a/b", b"body")
    assert any_storage.read("a/b") == b"body"
    assert any_storage.read_tagged("a/b") == (b"body", tag)
    found = any_storage.stat("a/b")
    assert found is not None
    assert (found.bytes, found.tag) == (4, tag)


def test_what_is_not_there_is_not_found(any_storage: Storage, tmp_path: Path):
    any_storage.write("a/b", b"body")
    for read in (
        lambda: any_storage.read("a/c"),
        lambda: any_storage.read("a"),
        lambda: any_storage.read_tagged("nothing"),
        lambda: any_storage.read_range("a/c", 0, 1),
        lambda: any_storage.download("a/c", tmp_path / "c"),
    ):
        with pytest.raises(NotFound):
            read()
    assert any_storage.stat("a/c") is None
    assert any_storage.stat("a") is None
    assert list(tmp_path.glob("*c*")) == []
    any_storage.delete("a/c")


def test_ranges_are_exact(any_storage: Storage):
    body = bytes(range(256)) * 40
    any_storage.write("body", body)
    assert any_storage.read_range("body", 250, 20) == body[250:270]
    assert any_storage.read_range("body", 0, len(body)) == body
    assert any_storage.read_range("body", 5, 0) == b""
    with pytest.raises(ValueError, match="asked for 20 bytes"):
        any_storage.read_range("body", len(body) - 10, 20)


def test_a_list_is_sorted_and_complete_beyond_one_page(any_storage: Storage):
    keys = sorted(f"many/{i % 7}/{i:05d}" for i in range(1100))
    for key in reversed(keys):
        any_storage.write(key, b"")
    any_storage.write("manyother", b"")
    assert list(any_storage.list("many/")) == keys
    assert list(any_storage.list("many/3/0")) == [key for key in keys if key.startswith("many/3/0")]
    assert list(any_storage.list("none/")) == []
    assert list(any_storage.sizes("many/")) == [(key, len(any_storage.read(key))) for key in keys]
    assert any_storage.list_folders("many/") == [str(i) for i in range(7)]
    assert any_storage.list_folders("many/", 3) == ["0", "1", "2"]
    assert any_storage.list_folders("") == ["many"]
    assert any_storage.list_folders("none/") == []


def test_create_happens_once(any_storage: Storage):
    tag = any_storage.write_if_absent("head", b"first")
    assert any_storage.read_tagged("head") == (b"first", tag)
    with pytest.raises(Conflict):
        any_storage.write_if_absent("head", b"second")
    assert any_storage.read("head") == b"first"


def test_swap_needs_the_newest_tag(any_storage: Storage):
    old = any_storage.write_if_absent("head", b"0")
    new = any_storage.compare_and_swap("head", b"1", old)
    with pytest.raises(Conflict):
        any_storage.compare_and_swap("head", b"2", old)
    assert any_storage.read_tagged("head") == (b"1", new)
    with pytest.raises(Conflict):
        any_storage.compare_and_swap("absent", b"1", new)


def test_ones_own_write_is_told_from_a_lost_race(any_storage: Storage):
    """The response was lost and the request came again: the body there is the caller's own."""
    tag = any_storage.write_if_absent("head", b"mine, nonce 1")
    assert any_storage.write_if_absent("head", b"mine, nonce 1") == tag
    swapped = any_storage.compare_and_swap("head", b"mine, nonce 2", tag)
    assert any_storage.compare_and_swap("head", b"mine, nonce 2", tag) == swapped
    assert any_storage.read("head") == b"mine, nonce 2"


@pytest.mark.parametrize("condition", ["create", "swap"])
def test_a_response_that_is_dropped_on_the_wire_loses_nothing(s3_root: str, condition: str):
    """The server has taken the write when the connection breaks; the caller asks again and meets its own body."""
    from cluster.storage import s3

    storage = open_storage(s3_root)
    tag = storage.write_if_absent("swap", b"old")
    client, dropped = s3._client(), []

    def drop(**_: object) -> None:
        if not dropped:
            dropped.append(True)
            raise ConnectionResetError("dropped by the test")

    client.meta.events.register("response-received.s3.PutObject", drop)
    try:
        with pytest.raises(ConnectionResetError):
            _conditional(storage, condition, tag)
        # The same request again, as after any connection error.
        _conditional(storage, condition, tag)
    finally:
        client.meta.events.unregister("response-received.s3.PutObject", drop)
    assert dropped
    assert storage.read(condition) == b"mine"


def _conditional(storage: Storage, condition: str, tag: str) -> str:
    if condition == "create":
        return storage.write_if_absent("create", b"mine")
    return storage.compare_and_swap("swap", b"mine", tag)


def _race(url: str, writer: int, results: multiprocessing.Queue) -> None:
    storage = open_storage(url)
    won = 0
    for turn in range(ROUNDS):
        while True:
            body, tag = storage.read_tagged("HEAD.json")
            count = int(body.split()[0])
            try:
                storage.compare_and_swap("HEAD.json", f"{count + 1} {writer} {turn}".encode(), tag)
            except Conflict:
                continue
            won += 1
            break
    created = 0
    for turn in range(ROUNDS):
        try:
            storage.write_if_absent(f"created-{turn}", str(writer).encode())
            created += 1
        except Conflict:
            pass
    results.put((won, created))


def test_eight_writers_racing_for_one_head_lose_no_change(any_storage: Storage):
    any_storage.write_if_absent("HEAD.json", b"0 none none")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    # They end with this process at the latest.
    writers = [context.Process(target=_race, args=(any_storage.url, i, results), daemon=True) for i in range(WRITERS)]
    for writer in writers:
        writer.start()
    outcomes = [results.get(timeout=300) for _ in writers]
    for writer in writers:
        writer.join(30)
    assert any_storage.read("HEAD.json").split()[0] == str(WRITERS * ROUNDS).encode()
    assert sum(created for _, created in outcomes) == ROUNDS


def test_files_travel_whole_and_are_counted(any_storage: Storage, tmp_path: Path):
    source = tmp_path / "large"
    block = os.urandom(2**20)
    with open(source, "wb") as file:
        for _ in range(37):
            file.write(block)
    digest = any_storage.upload("large", source)
    assert digest.bytes == 37 * 2**20
    assert digest.sha256 == hashlib.sha256(block * 37).hexdigest()
    any_storage.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == block * 37
    assert any_storage.read_range("large", 20 * 2**20 - 5, 10) == (block[-5:] + block[:5])


HALFWAY = """
import os, socket, sys, threading, time
from pathlib import Path
from cluster.storage import open_storage

url, path, how = sys.argv[1:]
sent, whole, first = 0, socket.socket.sendall, threading.Lock()

def halfway(*_, **__):
    first.acquire()  # parts are sent by many threads: the first one tells, the others wait for ever
    print("halfway", flush=True)
    time.sleep(3600)

def sendall(self, data, *flags):
    global sent
    view = memoryview(data)
    for start in range(0, len(view), 2**20):
        if sent > 20 * 2**20:
            halfway()
        whole(self, view[start : start + 2**20], *flags)
        sent += len(view[start : start + 2**20])

# Over the network: 20 MB are sent, and no more come. In a folder: every byte is on disk and has no name yet.
socket.socket.sendall, os.replace, os.link = sendall, halfway, halfway
storage = open_storage(url)
if how == "upload":
    storage.upload("killed/large", Path(path))
elif how == "writer":
    with storage.writer("killed/large") as writer:
        writer.write(Path(path).read_bytes())
else:
    storage.write("killed/large", Path(path).read_bytes())
"""


@pytest.mark.parametrize("how", ["upload", "write", "writer"])
def test_a_killed_writer_leaves_nothing_that_a_reader_sees(any_storage: Storage, tmp_path: Path, how: str):
    source = tmp_path / "large"
    source.write_bytes(os.urandom(2**20) * 64)
    command = [sys.executable, "-c", HALFWAY, any_storage.url, str(source), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer, killed_at_last(writer):
        assert writer.stdout is not None
        told = writer.stdout.readline()
    assert told == b"halfway\n"
    assert writer.returncode == -signal.SIGKILL
    assert list(any_storage.list("")) == []
    assert any_storage.stat("killed/large") is None
    any_storage.upload("killed/large", source)
    assert any_storage.read_range("killed/large", 40 * 2**20, 100) == source.read_bytes()[40 * 2**20 :][:100]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../../b", "a//b", "./a"])
def test_a_folder_is_never_left(tmp_path: Path, key: str):
    storage = open_storage(f"file://{tmp_path}/root")
    with pytest.raises(ValueError, match="no storage key"):
        storage.write(key, b"")


def test_a_storage_can_be_sent_to_another_process(any_storage: Storage):
    any_storage.write("key", b"body")
    assert pickle.loads(pickle.dumps(any_storage)).read("key") == b"body"


@pytest.mark.parametrize("url", ["gs://bucket", "file://relative", "s3://", "s3://ab", "folder"])
def test_an_address_that_is_none_is_explained(url: str):
    with pytest.raises(UserError, match="expected"):
        open_storage(url)


def test_wrong_credentials_and_missing_buckets_are_explained(s3_root: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="NoSuchBucket"):
        open_storage("s3://no-such-bucket/x").write("key", b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unknown")
    with pytest.raises(UserError, match="check bucket, region, credentials and rights"):
        open_storage(s3_root).write("key", b"")


def test_an_object_is_written_while_it_is_made(any_storage: Storage):
    """Pieces of odd sizes, beyond several parts of a multipart upload."""
    pieces = [os.urandom(2**20 + 7) * times for times in (1, 17, 3, 20)]
    with any_storage.writer("made") as writer:
        for piece in pieces:
            writer.write(piece)
        assert any_storage.stat("made") is None
    body = b"".join(pieces)
    assert writer.digest is not None
    assert (writer.digest.bytes, writer.digest.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert any_storage.read("made") == body
    with any_storage.writer("empty"):
        pass
    assert any_storage.read("empty") == b""


def test_a_writer_that_fails_leaves_what_was_there(any_storage: Storage):
    any_storage.write("kept", b"old")
    for key in ("kept", "new"):
        with pytest.raises(TypeError):
            _write_and_fail(any_storage, key)
    assert list(any_storage.list("")) == ["kept"]
    assert any_storage.read("kept") == b"old"


def test_a_writer_that_fails_leaves_no_parts_in_s3(s3_root: str):
    from cluster.storage import s3

    storage = open_storage(s3_root)
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")

    def uploads() -> list[str]:
        found = s3._client().list_multipart_uploads(Bucket=bucket, Prefix=prefix)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    seen: list[str] = []
    with pytest.raises(TypeError):
        _write_and_fail(storage, "new", lambda: seen.extend(uploads()))
    assert seen == [f"{prefix}/new"]
    assert uploads() == []


def _write_and_fail(storage: Storage, key: str, look: Callable[[], None] = lambda: None) -> None:
    with storage.writer(key) as writer:
        writer.write(os.urandom(2**20) * 40)
        look()
        writer.write(None)  # type: ignore[arg-type]
