"""Storage in an S3 bucket, or in any server that speaks S3 with conditional writes. The only importer of boto3.

Credentials, endpoint and region come from the standard environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION) or from wherever boto3 finds
them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cluster.errors import UserError
from cluster.storage import retry
from cluster.storage.base import Conflict, Digest, NotFound, ObjectWriter, Stat, file_digest
from cluster.storage.keys import check_key, check_prefix
from cluster.storage.multipart import multipart
from cluster.storage.retry import Transient, patiently
from cluster.storage.transfer import PIECE_BYTES, check_part, fetch_parts, whole_file, write_at

MULTIPART_BYTES = 16 * 2**20
WRITE_TRIES = 5
"""Requests of a write after the first, and conditional writes that S3 asks for again."""
WRITE_TIMEOUT_S = 60.0
"""How long a write may wait for its answer, in seconds: S3 stores, or puts parts together, before it answers."""
SETTINGS = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE"),
)
T = TypeVar("T")
_clients: dict[tuple[Any, ...], Any] = {}
_clients_lock = threading.Lock()


class S3Storage:
    """Keys below a prefix of a bucket; the tag is the ETag.

    An ETag is made of the body, so equal bodies have equal tags: bodies that are compared carry a nonce.
    """

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        if len(bucket) < 3:
            raise UserError(f"{url}: expected s3://BUCKET/PREFIX with a bucket of three letters or more")
        self.url = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""

    def read(self, key: str) -> bytes:
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        return self._get(key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            # HTTP has no empty ranges.
            if self.stat(key) is None:
                raise NotFound(key)
            return b""
        data = self._get_range(key, start, length)
        if len(data) != length:
            raise ValueError(f"{key}: asked for {length} bytes from {start}, found {len(data)}")
        return data

    def stat(self, key: str) -> Stat | None:
        place = self._place(key)
        try:
            found = self._read(key, lambda: _reading_client().head_object(**place))
        except NotFound:
            return None
        return Stat(bytes=found["ContentLength"], tag=found["ETag"])

    def write(self, key: str, data: bytes) -> str:
        return self._put(key, data)

    def write_if_absent(self, key: str, data: bytes) -> str:
        return self._conditional(key, data, IfNoneMatch="*")

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> str:
        return self._conditional(key, data, IfMatch=tag)

    def upload(self, key: str, path: Path) -> Digest:
        from boto3.s3.transfer import TransferConfig

        transfer = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES)
        # The server checks each part against its hash, and makes the object visible when all parts are there.
        hashed = {"ChecksumAlgorithm": "SHA256"}
        bucket, name = self._place(key).values()
        digest = file_digest(path)
        self._call(key, lambda: _client().upload_file(str(path), bucket, name, ExtraArgs=hashed, Config=transfer))
        stored = self.stat(key)
        if stored is None or stored.bytes != digest.bytes:
            raise OSError(f"{key}: sent {digest.bytes} bytes, the storage has {stored.bytes if stored else 'none'}")
        return digest

    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        bucket, name = self._place(key).values()
        return multipart(_client(), lambda request: self._call(key, request), bucket, name)

    def download(self, key: str, path: Path) -> None:
        # Not boto3's download_file: it reads a broken part again five times, at once and without a pause.
        if (found := self.stat(key)) is None:
            raise NotFound(key)
        try:
            with whole_file(path) as file:
                fetch_parts(lambda start, length: self._fetch_range(key, start, length, found.tag, file), found.bytes)
        except Conflict:
            raise OSError(f"{self.url}: {key} changed while it was fetched") from None

    def list(self, prefix: str) -> Iterator[str]:
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for page in self._pages(prefix, ""):
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(self._prefix), item["Size"]

    def list_folders(self, prefix: str, limit: int | None = None) -> list[str]:
        start = len(self._prefix) + len(prefix)
        found = (item["Prefix"] for page in self._pages(prefix, "/") for item in page.get("CommonPrefixes", []))
        return sorted(name[start:].rstrip("/") for name in islice(found, limit))

    def delete(self, key: str) -> None:
        place = self._place(key)
        with suppress(NotFound):
            self._call(key, lambda: _client().delete_object(**place))

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _get(self, key: str) -> tuple[bytes, str]:
        place = self._place(key)

        def get() -> tuple[bytes, str]:
            answer = _reading_client().get_object(**place)
            return answer["Body"].read(), answer["ETag"]

        return self._read(key, get)

    def _get_range(self, key: str, start: int, length: int) -> bytes:
        """The bytes that there are from `start`, at most `length`."""
        part = {**self._place(key), "Range": f"bytes={start}-{start + length - 1}"}

        def get() -> bytes:
            answer = _reading_client().get_object(**part)
            data = answer["Body"].read()
            check_part(answer.get("ContentRange"), len(data), start, length)
            return data

        return self._read(key, get)

    def _fetch_range(self, key: str, start: int, length: int, tag: str, file: BinaryIO) -> None:
        """Write these bytes of the object with this tag to the same place of a file, as they come."""
        part = {**self._place(key), "IfMatch": tag, "Range": f"bytes={start}-{start + length - 1}"}

        def fetch() -> None:
            answer = _reading_client().get_object(**part)
            with closing(answer["Body"]) as body:
                # Before the first byte is written: an answer that is too long would reach into the next part.
                check_part(answer.get("ContentRange"), _length(answer), start, length)
                write_at(file, start, body.iter_chunks(PIECE_BYTES))

        self._read(key, fetch)

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        place = self._place(key)
        return self._call(key, lambda: _client().put_object(**place, Body=data, **condition)["ETag"])

    def _conditional(self, key: str, data: bytes, **condition: str) -> str:
        from cluster.storage.s3_errors import Undecided

        for attempt in range(WRITE_TRIES):
            try:
                return self._put(key, data, **condition)
            except (Conflict, NotFound) as refused:
                # boto3 sends a request again when its response was lost; the second one then meets the
                # first one's body. An equal body is our own.
                if (own := self._own(key, data)) is not None:
                    return own
                if not isinstance(refused, Undecided) or attempt == WRITE_TRIES - 1:
                    raise Conflict(f"{key}: {refused}") from refused
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def _own(self, key: str, data: bytes) -> str | None:
        """The tag, if the body there is the one that the caller wanted to write."""
        try:
            body, tag = self.read_tagged(key)
        except NotFound:
            return None
        return tag if body == data else None

    def _pages(self, prefix: str, delimiter: str) -> Iterator[dict[str, Any]]:
        request = {"Bucket": self._bucket, "Prefix": self._prefix + check_prefix(prefix), "Delimiter": delimiter}
        # Not boto3's paginator: asked again after an error it says that there are no more pages.
        while True:
            page = self._read(prefix, lambda: _reading_client().list_objects_v2(**request))
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _read(self, key: str, request: Callable[[], T]) -> T:
        """Make a request that changes nothing, until its whole answer is here or the budget is spent."""
        return patiently(lambda: self._call(key, request))

    def _call(self, key: str, request: Callable[[], T]) -> T:
        """Make a request, and say its errors in this program's words."""
        from cluster.storage.s3_errors import ERRORS, explained

        try:
            return request()
        except ERRORS as error:
            raise explained(error, f"{self.url} at {_endpoint() or 'AWS'}", key) from error


def _length(answer: dict[str, Any]) -> int:
    """Bytes of an answer's body, as it says before it comes. Raises Transient where it does not say."""
    if (found := answer.get("ContentLength")) is None:
        raise Transient("a part came without its length")
    return found


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _client(retries: int = WRITE_TRIES) -> Any:
    """This process's client for the settings in force: made once, safe over threads, never inherited by a fork."""
    key = (os.getpid(), retries, *(os.environ.get(name) for name in SETTINGS))
    # Looked up without the lock first: a fork while another thread holds it would leave it locked for ever.
    if key not in _clients:
        with _clients_lock:
            if key not in _clients:
                _clients[key] = _new_client(retries)
    return _clients[key]


def _reading_client() -> Any:
    """The client for what changes nothing, which asks once and leaves asking again to `patiently`.

    boto3's retries would multiply ours, do not see a body that breaks, and share a quota of about 35 over
    all threads of a process: where many read, an outage of a moment uses it up and the rest fail at once.
    Writes keep boto3's retries, since a repeated conditional write has to be told from a lost race.
    """
    return _client(retries=0)


def _new_client(retries: int) -> Any:
    import boto3
    import botocore.session
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1 + retries},
        connect_timeout=retry.CONNECT_TIMEOUT_S,
        read_timeout=WRITE_TIMEOUT_S if retries else retry.READ_TIMEOUT_S,
        s3={"addressing_style": "path"} if _endpoint() else {},
        # Servers other than AWS may not know the newer checksums, where we do not ask for one.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=32,
        # botocore puts its own together anew for every request, which is an eighth of what a request costs.
        user_agent=f"patchline Boto3/{boto3.__version__}",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    # A session of its own: boto3's default session keeps the credentials that it saw first.
    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    boto3_session = boto3.Session(botocore_session=session)
    return boto3_session.client("s3", region_name=region, endpoint_url=_endpoint(), config=config)


def _timestamp(value: str | float) -> datetime:
    """A time in an answer. botocore's own parser, which tries all forms, takes most of the time of a long listing."""
    from botocore.utils import parse_timestamp

    if isinstance(value, str):
        with suppress(ValueError):
            if value.endswith("Z"):
                return datetime.fromisoformat(value)
            if value.endswith("GMT"):
                return parsedate_to_datetime(value)
    parsed: datetime = parse_timestamp(value)
    return parsed


def create_bucket(name: str) -> None:
    """Make a bucket; nothing happens where we have it already."""
    from botocore.exceptions import ClientError

    try:
        _client().create_bucket(Bucket=name)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
