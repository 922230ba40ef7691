"""Reading through a network that breaks answers: what passes is survived, what stays ends in one clear error."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.storage import Conflict, NotFound, Storage, open_storage, retry, transfer
from cluster.storage.web import TOKEN, TOKEN_HOST
from stages.data.cache import CorruptShard, ShardCache
from stages.data.table import File
from tests.contract.servers import (
    Fault,
    FaultyProxy,
    FileServer,
    bad_gateway,
    cut,
    flipped,
    instead,
    internal_error,
    lengthened,
    pass_on,
    reset,
    reset_in_the_body,
    shortened,
    silent,
    slow_down,
    too_many_requests,
    unmeasured,
)

BODY = os.urandom(2**18)
FAULTS = [slow_down, internal_error, bad_gateway, too_many_requests, reset, reset_in_the_body, cut]


def downloaded(storage: Storage, folder: Path) -> bytes:
    storage.download("folder/body", folder / "body")
    return (folder / "body").read_bytes()


READS: dict[str, Callable[[Storage, Path], bytes]] = {
    "read": lambda storage, folder: storage.read("folder/body"),
    "read_tagged": lambda storage, folder: storage.read_tagged("folder/body")[0],
    "read_range": lambda storage, folder: storage.read_range("folder/body", 0, len(BODY)),
    "download": downloaded,
}
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: getattr(fault, "__name__", None))
each_read = pytest.mark.parametrize("how", READS)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def stored(proxy: FaultyProxy, s3_root: str) -> Storage:
    """A storage behind the proxy, with the body in it."""
    storage = open_storage(s3_root)
    storage.write("folder/body", BODY)
    proxy.forget()
    return storage


def gets(proxy: FaultyProxy, how: str) -> int:
    """Requests that a read made, beside the one by which a download learns the size."""
    assert proxy.count("HEAD") == (how == "download")
    return proxy.count("GET")


@each_read
@each_fault
def test_a_fault_that_passes_is_survived(proxy: FaultyProxy, stored: Storage, tmp_path: Path, fault: Fault, how: str):
    proxy.plan["GET"] = [fault, fault]
    assert READS[how](stored, tmp_path) == BODY
    assert gets(proxy, how) == 3


@each_read
@each_fault
def test_a_fault_that_stays_ends_in_one_error_after_the_budget(
    proxy: FaultyProxy, stored: Storage, tmp_path: Path, fault: Fault, how: str
):
    proxy.always["GET"] = fault
    with pytest.raises(ConnectionError, match=rf"folder/body: .*\(the last of {retry.TRIES} tries\)"):
        READS[how](stored, tmp_path)
    assert gets(proxy, how) == retry.TRIES
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["read_range", "download"])
def test_a_part_that_somebody_shortened_is_noticed(proxy: FaultyProxy, stored: Storage, tmp_path: Path, how: str):
    proxy.plan["GET"] = [shortened]
    assert READS[how](stored, tmp_path) == BODY
    assert gets(proxy, how) == 2


def test_a_part_that_does_not_say_how_long_it_is_is_asked_for_again(
    proxy: FaultyProxy, stored: Storage, tmp_path: Path
):
    """It goes to the file as it comes, so that its length has to be known before."""
    proxy.plan["GET"] = [unmeasured]
    assert downloaded(stored, tmp_path) == BODY
    assert gets(proxy, "download") == 2
    proxy.forget()
    proxy.always["GET"] = unmeasured
    with pytest.raises(ConnectionError, match=rf"folder/body: a part came without its length \(.*{retry.TRIES} tries"):
        downloaded(stored, tmp_path)
    assert gets(proxy, "download") == retry.TRIES


def test_a_server_that_falls_silent_is_asked_again(
    proxy: FaultyProxy, s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    open_storage(s3_root).write("folder/body", BODY)
    monkeypatch.setattr(retry, "READ_TIMEOUT_S", 5.0)
    # Settings that no client has been made for yet: timeouts belong to the client.
    monkeypatch.setenv("AWS_REGION", "us-west-1")
    proxy.plan["GET"] = [silent]
    assert open_storage(s3_root).read("folder/body") == BODY


@pytest.mark.parametrize("fault", [cut, lengthened])
def test_a_large_download_costs_one_part_again(proxy: FaultyProxy, stored: Storage, tmp_path: Path, fault: Fault):
    body = os.urandom(2**20) * 20
    stored.write("large", body)
    proxy.forget()
    proxy.plan["GET"] = [fault]
    stored.download("large", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == body
    assert proxy.count("GET") == -(-len(body) // transfer.PART_BYTES) + 1


def test_an_object_that_changes_while_it_is_fetched_is_no_mixture(proxy: FaultyProxy, stored: Storage, tmp_path: Path):
    def change(request, answer):
        stored.write("folder/body", BODY[::-1])
        slow_down(request, answer)

    proxy.plan["GET"] = [change]
    with pytest.raises(OSError, match="folder/body changed while it was fetched"):
        stored.download("folder/body", tmp_path / "body")
    assert list(tmp_path.iterdir()) == []


def test_lists_of_several_pages_survive(proxy: FaultyProxy, stored: Storage):
    keys = sorted(f"many/{number:04d}" for number in range(1010))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: stored.write(key, b""), keys))
    proxy.forget()
    proxy.plan["GET"] = [*FAULTS[:4], pass_on, *FAULTS[4:]]
    assert list(stored.list("many/")) == keys
    assert proxy.count("GET") == 2 + len(FAULTS)


def test_what_no_retry_mends_is_not_asked_again(proxy: FaultyProxy, stored: Storage):
    assert stored.stat("none") is None
    with pytest.raises(NotFound):
        stored.read("none")
    with pytest.raises(UserError, match="check bucket, region, credentials and rights"):
        open_storage("s3://no-such-bucket/x").read("key")
    assert (proxy.count("HEAD"), proxy.count("GET")) == (1, 2)


@pytest.mark.parametrize("fault", [reset, slow_down, internal_error])
def test_a_conditional_write_whose_answer_is_lost_is_won_not_lost(proxy: FaultyProxy, stored: Storage, fault: Fault):
    proxy.plan["PUT"] = [fault]
    tag = stored.write_if_absent("head", b"mine 1")
    proxy.plan["PUT"] = [fault]
    newest = stored.compare_and_swap("head", b"mine 2", tag)
    assert stored.read_tagged("head") == (b"mine 2", newest)
    with pytest.raises(Conflict):
        stored.compare_and_swap("head", b"theirs", tag)


def test_many_readers_survive_an_outage_of_a_moment(
    proxy: FaultyProxy, stored: Storage, monkeypatch: pytest.MonkeyPatch
):
    """boto3's own retries share a quota of a process, which 64 readers use up at once."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.1)
    proxy.plan["GET"] = [slow_down] * 64
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda _: stored.read_range("folder/body", 100, 1000), range(128)))
    assert found == [BODY[100:1100]] * 128
    assert proxy.count("GET") == 128 + 64


def shard(body: bytes) -> File:
    return File(address="tars/0.tar", bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def test_flipped_bytes_are_fetched_again_once(proxy: FaultyProxy, stored: Storage, tmp_path: Path):
    stored.write("data/tars/0.tar", BODY)
    cache = ShardCache(stored, "data", tmp_path / "cache")
    proxy.forget()
    proxy.plan["GET"] = [flipped]
    assert cache.read(shard(BODY)) == BODY
    assert proxy.count("GET") == 2


def test_bytes_that_stay_wrong_name_the_shard_and_leave_nothing(proxy: FaultyProxy, stored: Storage, tmp_path: Path):
    stored.write("data/tars/0.tar", BODY)
    cache = ShardCache(stored, "data", tmp_path / "cache")
    proxy.always["GET"] = flipped
    with pytest.raises(CorruptShard, match=r"tars/0\.tar was fetched twice and neither time had the sha256"):
        cache.open(shard(BODY))
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    proxy.always.clear()
    assert cache.read(shard(BODY)) == BODY


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FileServer]:
    """A web server with the body."""
    (tmp_path / "site" / "folder").mkdir(parents=True)
    (tmp_path / "site" / "folder" / "body").write_bytes(BODY)
    server = FileServer(tmp_path / "site")
    with server.running():
        yield server


@pytest.fixture
def faulty_site(site: FileServer) -> Iterator[FaultyProxy]:
    server = FaultyProxy(site.url)
    with server.running():
        yield server
        server.closing.set()


@each_read
@each_fault
def test_over_http_too_a_fault_that_passes_is_survived(
    faulty_site: FaultyProxy, tmp_path: Path, fault: Fault, how: str
):
    faulty_site.plan["GET"] = [fault, fault]
    assert READS[how](open_storage(faulty_site.url), tmp_path) == BODY
    assert faulty_site.count("GET") == 3


@each_read
def test_over_http_too_a_fault_that_stays_ends_after_the_budget(faulty_site: FaultyProxy, tmp_path: Path, how: str):
    faulty_site.always["GET"] = reset_in_the_body
    before = set(tmp_path.iterdir())
    with pytest.raises(ConnectionError, match=rf"/folder/body: .*\(the last of {retry.TRIES} tries\)"):
        READS[how](open_storage(faulty_site.url), tmp_path)
    assert faulty_site.count("GET") == retry.TRIES
    assert set(tmp_path.iterdir()) == before


def test_a_broken_download_goes_on_where_it_broke(faulty_site: FaultyProxy, site: FileServer, tmp_path: Path):
    body = BODY * 20
    (site.folder / "folder" / "body").write_bytes(body)
    faulty_site.plan["GET"] = [cut]
    assert downloaded(open_storage(faulty_site.url), tmp_path) == body
    first, second = (headers for _, headers in site.asked)
    assert "Range" not in first
    assert second["Range"] == f"bytes={2 * 2**20}-", "what came in whole blocks is kept"


def test_a_download_of_a_file_that_changed_in_between_begins_again(
    faulty_site: FaultyProxy, site: FileServer, tmp_path: Path
):
    def change(request, answer):
        (site.folder / "folder" / "body").write_bytes(BODY[::-1])
        cut(request, answer)

    faulty_site.plan["GET"] = [change]
    assert downloaded(open_storage(faulty_site.url), tmp_path) == BODY[::-1]


def test_a_server_without_ranges_serves_small_files(site: FileServer):
    plain = FileServer(site.folder, ranges=False)
    with plain.running():
        storage = open_storage(f"{plain.url}/folder")
        assert storage.read_range("body", 1000, 50) == BODY[1000:1050]
        found = storage.stat("body")
        assert found is not None
        assert found.bytes == len(BODY)


def test_a_web_server_is_only_read(site: FileServer, tmp_path: Path):
    storage = open_storage(site.url)
    for write in (
        lambda: storage.write("key", b""),
        lambda: storage.write_if_absent("key", b""),
        lambda: storage.compare_and_swap("key", b"", "tag"),
        lambda: storage.upload("key", tmp_path),
        lambda: storage.writer("key"),
        lambda: storage.delete("key"),
        lambda: storage.list(""),
    ):
        with pytest.raises(UserError, match=f"{site.url}: a web server is read-only"):
            write()


def test_what_is_not_there_is_not_found(site: FileServer, tmp_path: Path):
    storage = open_storage(site.url)
    assert storage.stat("folder/none") is None
    for read in (
        lambda: storage.read("folder/none"),
        lambda: storage.read_range("folder/none", 0, 1),
        lambda: storage.read_range("folder/none", 0, 0),
        lambda: storage.download("folder/none", tmp_path / "none"),
    ):
        with pytest.raises(NotFound):
            read()
    with pytest.raises(ValueError, match="asked for 10 bytes"):
        storage.read_range("folder/body", len(BODY) - 5, 10)
    with pytest.raises(ValueError, match="beyond its end"):
        storage.read_range("folder/body", len(BODY), 10)


def test_the_token_goes_to_its_host_alone(site: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = FileServer(site.folder)
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setenv(TOKEN_HOST, site.host)
    site.moved = {"/here": "/folder/body", "/away": f"{other.url}/folder/body"}
    with other.running():
        assert open_storage(site.url).read("here") == BODY
        assert open_storage(site.url).read("away") == BODY
        assert open_storage(other.url).read("folder/body") == BODY
    assert site.tokens() == ["Bearer secret"] * 3
    assert other.tokens() == [None, None]


def test_a_signature_is_sent_and_never_shown(site: FileServer):
    storage = open_storage(site.url)
    assert storage.read("folder/body?signature=secret") == BODY
    assert site.asked[-1][0] == "/folder/body?signature=secret"
    with pytest.raises(NotFound) as caught:
        storage.read("folder/none?signature=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_what_to_set(faulty_site: FaultyProxy, status: int):
    faulty_site.always["GET"] = instead(status, "text/plain", "no")
    with pytest.raises(UserError, match=rf"HTTP {status}.*set {TOKEN} and {TOKEN_HOST}=127.0.0.1"):
        open_storage(faulty_site.url).read("folder/body")
    assert faulty_site.count("GET") == 1
