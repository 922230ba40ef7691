"""What the storages refuse before they ask any server; the rest is in tests/contract."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.local.processes import free_ports
from cluster.storage import Storage, open_storage

SOMEWHERE = Path("anywhere")
ACTS: list[Callable[[Storage, str], object]] = [
    lambda storage, key: storage.read(key),
    lambda storage, key: storage.read_range(key, 0, 1),
    lambda storage, key: storage.stat(key),
    lambda storage, key: storage.write_if_absent(key, b""),
    lambda storage, key: storage.compare_and_swap(key, b"", "tag"),
    lambda storage, key: storage.download(key, SOMEWHERE),
    lambda storage, key: storage.delete(key),
]


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Each storage; behind the S3 one there is no server, so that a request would show."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_ports(1)[0]}")
    return open_storage(f"file://{tmp_path}/root" if request.param == "file" else "s3://bucket/prefix")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../../b", "..", "a//b", "a/", "./a", ".patchline/versions/1"])
def test_no_key_leads_out_of_the_root_or_into_what_is_the_storages_own(storage: Storage, key: str):
    for act in ACTS:
        with pytest.raises(ValueError, match="is no storage key: expected parts with names"):
            act(storage, key)


@pytest.mark.parametrize("prefix", ["/", "../", "a//", "a/../b", ".patchline/"])
def test_no_list_leads_out_of_the_root(storage: Storage, prefix: str):
    with pytest.raises(ValueError, match="no storage key"):
        list(storage.list(prefix))
    with pytest.raises(ValueError, match="no storage key"):
        storage.list_folders(prefix)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file:///tmp/root/", "file:///tmp/root"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
    ],
)
def test_one_place_has_one_address(url: str, shown: str):
    assert open_storage(url).url == shown


@pytest.mark.parametrize("url", ["", "S3://bucket/prefix", "ftp://bucket.s3.amazonaws.com", "file:/folder", "/folder"])
def test_an_address_that_is_none_is_shown_with_what_was_expected(url: str):
    with pytest.raises(UserError) as caught:
        open_storage(url)
    expected = "expected file:///FOLDER or s3://BUCKET/PREFIX, or https://HOST/PATH to read from"
    assert str(caught.value) == f"{url!r}: {expected}"


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"s3://bucket/p at AWS: no credentials: set AWS_ACCESS_KEY_ID"):
        open_storage("s3://bucket/p").read("key")
