"""What a user can mend of storage's errors: each is one message that says what is wrong and what to do, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.local.stack import Stack
from cluster.storage import Storage, open_storage
from tests.contract.servers import ERROR, Fault, FaultyProxy, instead


def answer(status: int, code: str) -> Fault:
    return instead(status, "application/xml", ERROR.format(code=code))


FULL = "raise the bucket's quota or delete what nobody needs"
READ_ONLY = "AccessDenied: these credentials may not write here: give them the right to PutObject"
REFUSED: list[tuple[Fault, str]] = [
    (answer(400, "ExpiredToken"), r"the credentials have expired \(ExpiredToken\): renew them"),
    (answer(403, "AccessDenied"), READ_ONLY),
    (answer(403, "QuotaExceeded"), rf"no room left \(QuotaExceeded\): {FULL}"),
    (answer(400, "XMinioAdminBucketQuotaExceeded"), rf"no room left \(XMinioAdminBucketQuotaExceeded\): {FULL}"),
    (answer(507, "XMinioStorageFull"), rf"no room left \(XMinioStorageFull\): {FULL}"),
]
WRITES: dict[str, Callable[[Storage, Path], object]] = {
    "write": lambda storage, path: storage.write("key", b"body"),
    "write_if_absent": lambda storage, path: storage.write_if_absent("new", b"body"),
    "upload": lambda storage, path: storage.upload("key", path),
    "writer": lambda storage, path: stream(storage),
}


def stream(storage: Storage) -> None:
    with storage.writer("key") as file:
        file.write(b"body")


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize(("fault", "words"), REFUSED)
def test_a_bucket_that_takes_nothing_says_why_at_once(
    proxy: FaultyProxy, s3_root: str, tmp_path: Path, fault: Fault, words: str, how: str
):
    storage = open_storage(s3_root)
    (tmp_path / "file").write_bytes(b"body")
    proxy.always["PUT"] = fault
    with pytest.raises(UserError, match=f"{s3_root} at {proxy.url}: {words}"):
        WRITES[how](storage, tmp_path / "file")
    assert proxy.count("PUT") == 1, "asking again would mend nothing"


@pytest.mark.parametrize("status", [400, 403])
def test_expired_credentials_are_told_while_reading_too(proxy: FaultyProxy, s3_root: str, status: int):
    proxy.always["GET"] = answer(status, "ExpiredToken")
    with pytest.raises(UserError, match="the credentials have expired"):
        list(open_storage(s3_root).list(""))


def test_a_clock_that_is_an_hour_off_is_told_with_both_times(
    stack_environment: Stack, s3_root: str, monkeypatch: pytest.MonkeyPatch
):
    """A real server, and real signatures of the wrong hour."""
    from botocore import auth

    right = auth.get_current_datetime
    monkeypatch.setattr(
        auth, "get_current_datetime", lambda *args, **kwargs: right(*args, **kwargs) - timedelta(hours=1)
    )
    # Signing keys are made by the day: these requests are to have none of before.
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    for ask in (lambda storage: storage.read("key"), lambda storage: storage.write("key", b"body")):
        with pytest.raises(UserError, match=r"clock is wrong: it says .* GMT, the server .* GMT: set it"):
            ask(open_storage(s3_root))


def test_a_command_shows_the_message_and_nothing_else(
    proxy: FaultyProxy, s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    # Without a stack of its own the command asks the server that the environment names.
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path))
    proxy.always["PUT"] = answer(403, "AccessDenied")
    command = [sys.executable, "-m", "pipeline.cli", "run", "digits", "--root", s3_root]
    found = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: {s3_root} at {proxy.url}: {READ_ONLY}")


SCRIPT = """
import sys
from cluster.errors import UserError
from cluster.storage import open_storage
storage = open_storage(f"file://{sys.argv[1]}")
def stream():
    with storage.writer("large") as file:
        for _ in range(100):
            file.write(bytes(2**14))
for write in (lambda: storage.write("large", bytes(2**20)), stream, lambda: storage.write_if_absent("a", bytes(2**20))):
    try:
        write()
    except UserError as error:
        print(error)
print(list(storage.list("")))
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=256k", "no room left (No space left on device): make room on its disk, then `resume`"),
        ("ro", "nothing can be written (Read-only file system): mount it for writing, or name another --root"),
    ],
)
def test_a_disk_that_takes_nothing_says_why(tmp_path: Path, options: str, words: str):
    """A file system of its own, in a namespace that ends with the process."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("this system lets nobody mount file systems of their own")
    place, script = tmp_path / "disk", tmp_path / "script.py"
    place.mkdir()
    script.write_text(SCRIPT)
    mounted = f"mount -t tmpfs -o {options} tmpfs {place} && exec {sys.executable} {script} {place}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted], env=environment, capture_output=True, text=True, check=True
    )
    *told, left = found.stdout.splitlines()
    assert len(told) == 3, found
    assert all(line.startswith(f"file://{place}: {words}") for line in told)
    assert left == "[]"
