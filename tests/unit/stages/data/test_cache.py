import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.data.cache import CorruptShard, ShardCache
from stages.data.cache_account import Account
from stages.data.manifest import base_folder
from stages.data.table import File
from tests.killed import killed_at_last
from tests.unit.stages.shards import shards


class FlakyStorage:
    """A storage over another one, which spoils the first downloads and counts them all."""

    def __init__(self, inner, spoil=0):
        self.inner = inner
        self.spoil = spoil
        self.downloads = []
        self.lock = threading.Lock()

    def download(self, key, path):
        with self.lock:
            self.downloads.append(key)
            spoil = len(self.downloads) <= self.spoil
        self.inner.download(key, path)
        if spoil:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)


@pytest.fixture
def tars(digits):
    return [shard.tar for shard in shards(*digits, "train")]


def cached(storage, output, folder, **limits):
    return ShardCache(storage, base_folder(output), folder, **limits)


def key(output, tar):
    return f"{base_folder(output)}/{tar.address}"


def test_a_shard_is_fetched_once_for_all_caches_of_a_node(digits, tars, tmp_path):
    storage, output = FlakyStorage(digits[0]), digits[1]
    tar = tars[0]
    caches = [cached(storage, output, tmp_path / "cache") for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda i: caches[i % 4].read(tar), range(16)))
    assert set(contents) == {digits[0].read(key(output, tar))}
    assert storage.downloads == [key(output, tar)]


def test_another_run_shares_what_is_there(digits, tars, tmp_path):
    storage, output = FlakyStorage(digits[0]), digits[1]
    cached(storage, output, tmp_path / "cache").read(tars[0])
    assert ShardCache(storage, "not/there", tmp_path / "cache").read(tars[0])
    assert len(storage.downloads) == 1


def test_a_spoiled_download_is_fetched_again(digits, tars, tmp_path):
    storage, output = FlakyStorage(digits[0], spoil=1), digits[1]
    cache = cached(storage, output, tmp_path / "cache")
    assert cache.read(tars[0]) == digits[0].read(key(output, tars[0]))
    assert len(storage.downloads) == 2


def test_a_flipped_byte_in_storage_is_refused_by_name(digits, tars, tmp_path):
    cache = cached(FlakyStorage(digits[0], spoil=2), digits[1], tmp_path / "cache")
    with pytest.raises(CorruptShard, match=tars[0].address):
        cache.open(tars[0])
    assert not list((tmp_path / "cache").glob("*.cached"))
    assert not list((tmp_path / "cache").glob("*.part"))


def test_the_least_recently_used_go_above_the_limit(digits, tars, tmp_path):
    storage, output = FlakyStorage(digits[0]), digits[1]
    a, b, c = tars[:3]
    cache = cached(storage, output, tmp_path / "cache", limit_bytes=a.bytes + c.bytes)
    held = cache.open(a)
    cache.read(b)
    cache.read(a)
    content = cache.read(c)
    left = {file.stem for file in (tmp_path / "cache").glob("*.cached")}
    assert left == {a.sha256, c.sha256}
    assert content == digits[0].read(key(output, c))
    cache.read(b)
    with os.fdopen(held, "rb") as file:
        assert file.read() == digits[0].read(key(output, a)), "an open file outlives its eviction"
    assert storage.downloads == [key(output, tar) for tar in (a, b, c, b)]


def test_a_limit_below_one_shard_still_serves_it(digits, tars, tmp_path):
    cache = cached(digits[0], digits[1], tmp_path / "cache", limit_bytes=1)
    assert len(cache.read(tars[0])) == tars[0].bytes


def test_a_truncated_local_file_is_replaced(digits, tars, tmp_path):
    cache = cached(digits[0], digits[1], tmp_path / "cache")
    (tmp_path / "cache" / f"{tars[0].sha256}.cached").write_bytes(b"short")
    assert len(cache.read(tars[0])) == tars[0].bytes


def test_the_folder_is_private(digits, tmp_path):
    cached(digits[0], digits[1], tmp_path / "outer" / "cache")
    assert (tmp_path / "outer" / "cache").stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_refused(digits, tmp_path):
    folder = Path("/")
    if os.getuid() == 0:
        folder = tmp_path / "other"
        folder.mkdir()
        os.chown(folder, 1, 1)
    with pytest.raises(UserError, match="another user"):
        cached(digits[0], digits[1], folder)


def test_an_address_elsewhere_is_read_there(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.tar").write_bytes(b"body")
    url, sha256 = f"file://{tmp_path}/elsewhere/a.tar", hashlib.sha256(b"body").hexdigest()
    cache = ShardCache(open_storage(f"file://{tmp_path}/root"), "stages/ingest/x", tmp_path / "cache")
    tar = File(address=url, bytes=4, sha256=sha256)
    assert cache.read(tar) == b"body"
    assert cache.read_range(tar, 1, 2) == b"od"


def test_a_process_killed_while_it_fetches_leaves_a_cache_that_is_right(digits, tars, tmp_path):
    """SIGKILL when half of the file is there; the next one fetches it, and nothing of the first is left."""
    storage, output = digits
    code = f"""
import shutil, sys, time
from pathlib import Path
from cluster.storage import open_storage
from stages.data.cache import ShardCache
from stages.data.table import File
class Slow:
    def download(self, key, path):
        body = open_storage({storage.url!r}).read(key)
        with open(path, "wb") as file:
            file.write(body[: len(body) // 2])
        print("half", flush=True)
        time.sleep(3600)
ShardCache(Slow(), {base_folder(output)!r}, Path({str(tmp_path / "cache")!r})).open({tars[0]!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process, killed_at_last(process):
        assert process.stdout is not None
        told = process.stdout.readline()
    assert told == b"half\n"
    assert [file.suffix for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"] == [".part"]
    assert cached(storage, output, tmp_path / "cache").read(tars[0]) == storage.read(key(output, tars[0]))
    assert [file.suffix for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"] == [".cached"]


def test_what_a_killed_download_leaves_is_removed_by_the_next_fetch(digits, tars, tmp_path):
    """Also of a file that nobody asks for any more: the lock is that of all files with this beginning."""
    folder, own = tmp_path / "cache", tars[0].sha256
    cache = cached(*digits, folder)
    other = f"{(int(own[:2], 16) + 1) % 256:02x}{own[2:]}"
    for name in (f"{own}.7.part", f".{own}.7.part.0a1b", f".{own[:2]}{'0' * 62}.7.part.0a1b", f".{other}.7.part.0a1b"):
        (folder / name).write_bytes(b"half")
    os.close(cache.open(tars[0]))
    assert {file.name for file in folder.iterdir()} == {
        "account.lock", f"{own}.cached", f"{own[:2]}.lock", f".{other}.7.part.0a1b",
    }, "that one may be under way"  # fmt: skip


def listing(folder):
    """An account that counts how often it looks at all files."""
    account = Account(folder, ".cached")
    account.lists, look = 0, account.list

    def counted():
        account.lists += 1
        return look()

    account.list = counted
    return account


def put(folder, number, account, *, room):
    """A new file of one byte, the most recently used one."""
    path = folder / f"{number:05d}.cached"
    path.write_bytes(b"x")
    os.utime(path, ns=(number, number))
    account.add(path, 1, lambda used: room)
    return path


def test_a_full_cache_is_not_listed_for_each_file_that_comes(tmp_path):
    account = listing(tmp_path)
    for number in range(1000):
        put(tmp_path, number, account, room=100)
    assert sorted(file.stem for file in tmp_path.glob("*.cached")) == [f"{number:05d}" for number in range(900, 1000)]
    assert account.lists == 10, "once at the start, and once for as many as there is room for"


def test_what_was_used_after_a_list_stays(tmp_path):
    account = listing(tmp_path)
    paths = [put(tmp_path, number, account, room=10) for number in range(10)]
    put(tmp_path, 10, account, room=10)
    os.utime(paths[1], ns=(99, 99))
    put(tmp_path, 11, account, room=10)
    assert paths[1].exists()
    assert not paths[0].exists()
    assert not paths[2].exists()


def test_processes_that_share_a_folder_keep_its_limit_together(tmp_path):
    accounts = [listing(tmp_path) for _ in range(4)]
    for number in range(400):
        put(tmp_path, number, accounts[number % 4], room=40)
        assert len(list(tmp_path.glob("*.cached"))) <= 40
    assert len(list(tmp_path.glob("*.cached"))) == 40
    assert sum(account.lists for account in accounts) < 60


def test_a_process_that_starts_mends_the_sum(tmp_path):
    put(tmp_path, 0, listing(tmp_path), room=10)
    for number in range(1, 20):
        (tmp_path / f"{number:05d}.cached").write_bytes(b"x")
    put(tmp_path, 20, listing(tmp_path), room=10)
    assert len(list(tmp_path.glob("*.cached"))) == 10
