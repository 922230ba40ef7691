import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import UserError
from stages.context import Output
from stages.data.cache import CorruptShard, ShardCache
from stages.data.manifest import dataset_meta


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
def shards(digits):
    return dataset_meta(digits[1]).shards(["train"])


def read(cache, path):
    with os.fdopen(cache.open(path), "rb") as file:
        return file.read()


def test_a_shard_is_fetched_once_for_all_caches_of_a_node(digits, shards, tmp_path):
    storage, output = FlakyStorage(digits[0]), digits[1]
    path = shards[0].path
    caches = [ShardCache(storage, output, tmp_path / "cache") for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda i: read(caches[i % 4], path), range(16)))
    assert set(contents) == {digits[0].read(output.key(path))}
    assert storage.downloads == [output.key(path)]


def test_another_run_shares_what_is_there(digits, shards, tmp_path):
    storage, output = FlakyStorage(digits[0]), digits[1]
    read(ShardCache(storage, output, tmp_path / "cache"), shards[0].path)
    elsewhere = Output(prefix="not/there", manifest=output.manifest)
    assert read(ShardCache(storage, elsewhere, tmp_path / "cache"), shards[0].path)
    assert len(storage.downloads) == 1


def test_a_spoiled_download_is_fetched_again(digits, shards, tmp_path):
    storage, output = FlakyStorage(digits[0], spoil=1), digits[1]
    cache = ShardCache(storage, output, tmp_path / "cache")
    assert read(cache, shards[0].path) == digits[0].read(output.key(shards[0].path))
    assert len(storage.downloads) == 2


def test_a_flipped_byte_in_storage_is_refused_by_name(digits, shards, tmp_path):
    cache = ShardCache(FlakyStorage(digits[0], spoil=2), digits[1], tmp_path / "cache")
    with pytest.raises(CorruptShard, match=shards[0].path):
        cache.open(shards[0].path)
    assert not list((tmp_path / "cache").glob("*.tar"))
    assert not list((tmp_path / "cache").glob("*.part"))


def test_the_least_recently_used_go_above_the_limit(digits, shards, tmp_path):
    storage, output = FlakyStorage(digits[0]), digits[1]
    a, b, c = (shard.path for shard in shards[:3])
    cache = ShardCache(storage, output, tmp_path / "cache", limit_bytes=shards[0].bytes + shards[2].bytes)
    held = cache.open(a)
    read(cache, b)
    read(cache, a)
    content = read(cache, c)
    left = {file.stem for file in (tmp_path / "cache").glob("*.tar")}
    assert left == {shards[0].sha256, shards[2].sha256}
    assert content == digits[0].read(output.key(c))
    read(cache, b)
    with os.fdopen(held, "rb") as file:
        assert file.read() == digits[0].read(output.key(a)), "an open file outlives its eviction"
    assert storage.downloads == [output.key(path) for path in (a, b, c, b)]


def test_a_limit_below_one_shard_still_serves_it(digits, shards, tmp_path):
    cache = ShardCache(digits[0], digits[1], tmp_path / "cache", limit_bytes=1)
    assert len(read(cache, shards[0].path)) == shards[0].bytes


def test_a_truncated_local_file_is_replaced(digits, shards, tmp_path):
    cache = ShardCache(digits[0], digits[1], tmp_path / "cache")
    (tmp_path / "cache" / f"{shards[0].sha256}.tar").write_bytes(b"short")
    assert len(read(cache, shards[0].path)) == shards[0].bytes


def test_the_folder_is_private(digits, tmp_path):
    ShardCache(digits[0], digits[1], tmp_path / "outer" / "cache")
    assert (tmp_path / "outer" / "cache").stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_refused(digits, tmp_path):
    folder = Path("/")
    if os.getuid() == 0:
        folder = tmp_path / "other"
        folder.mkdir()
        os.chown(folder, 1, 1)
    with pytest.raises(UserError, match="another user"):
        ShardCache(digits[0], digits[1], folder)
