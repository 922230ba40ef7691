"""Storage in an S3 bucket, or in any server that speaks S3 with conditional writes. The only importer of boto3.

Credentials, endpoint and region come from the standard environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION) or from wherever boto3 finds
them.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import UserError
from cluster.storage.base import Conflict, Digest, NotFound, ObjectWriter, Stat, file_digest
from cluster.storage.keys import check_key, check_prefix
from cluster.storage.multipart import multipart

MULTIPART_BYTES = 16 * 2**20
TRIES = 5
REFUSED = {
    *("403", "AccessDenied", "AllAccessDisabled", "AuthorizationHeaderMalformed", "ExpiredToken", "InvalidAccessKeyId"),
    *("InvalidBucketName", "InvalidToken", "NoSuchBucket", "PermanentRedirect", "SignatureDoesNotMatch"),
}
"""Answers that no retry mends: the bucket, the credentials or the rights are wrong."""

SETTINGS = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE"),
)
T = TypeVar("T")
_clients: dict[tuple[Any, ...], Any] = {}
_clients_lock = threading.Lock()


class _Undecided(Conflict):
    """Another write of the key was under way, and S3 asks for the request again."""


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
        data, _ = self._get(key, Range=f"bytes={start}-{start + length - 1}")
        if len(data) != length:
            raise ValueError(f"{key}: asked for {length} bytes from {start}, found {len(data)}")
        return data

    def stat(self, key: str) -> Stat | None:
        place = self._place(key)
        try:
            found = self._call(key, lambda: _client().head_object(**place))
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
        bucket, name = self._place(key).values()
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            self._call(key, lambda: _client().download_file(bucket, name, str(temporary)))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        for page in self._pages(prefix, ""):
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(self._prefix)

    def list_folders(self, prefix: str) -> list[str]:
        start = len(self._prefix) + len(prefix)
        pages = self._pages(prefix, "/")
        return sorted(item["Prefix"][start:].rstrip("/") for page in pages for item in page.get("CommonPrefixes", []))

    def delete(self, key: str) -> None:
        place = self._place(key)
        with suppress(NotFound):
            self._call(key, lambda: _client().delete_object(**place))

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _get(self, key: str, **part: str) -> tuple[bytes, str]:
        """A body or a part of it, and the tag."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        place = self._place(key)

        def get() -> tuple[bytes, str]:
            for attempt in range(TRIES):
                # boto3 asks again until an answer begins; one that breaks off in the body is ours to repeat.
                answer = _client().get_object(**place, **part)
                try:
                    return answer["Body"].read(), answer["ETag"]
                except (HTTPClientError, IncompleteReadError):
                    if attempt == TRIES - 1:
                        raise
            raise AssertionError("unreachable")

        return self._call(key, get)

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        place = self._place(key)
        return self._call(key, lambda: _client().put_object(**place, Body=data, **condition)["ETag"])

    def _conditional(self, key: str, data: bytes, **condition: str) -> str:
        for attempt in range(TRIES):
            try:
                return self._put(key, data, **condition)
            except (Conflict, NotFound) as refused:
                # boto3 sends a request again when its response was lost; the second one then meets the
                # first one's body. An equal body is our own.
                if (own := self._own(key, data)) is not None:
                    return own
                if not isinstance(refused, _Undecided) or attempt == TRIES - 1:
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
        start = self._prefix + check_prefix(prefix)
        paginator = _client().get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=start, Delimiter=delimiter))
        while (page := self._call(prefix, lambda: next(pages, None))) is not None:
            yield page

    def _call(self, key: str, request: Callable[[], T]) -> T:
        """Make a request, and say its errors in this program's words.

        A connection that fails and a server that fails, after boto3's own retries, are OSError: what a machine did.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            return request()
        except (NoCredentialsError, PartialCredentialsError):
            raise UserError(f"{self.url}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
        except ClientError as error:
            raise self._explained(key, error) from error
        except (Boto3Error, BotoCoreError) as error:
            # An upload of several parts wraps the error of the part that failed.
            if isinstance(error.__context__, ClientError):
                raise self._explained(key, error.__context__) from error
            raise ConnectionError(f"{self.url} at {_endpoint() or 'AWS'}: {key}: {error}") from error

    def _explained(self, key: str, error: Any) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in REFUSED:
            where = f"{self.url} at {_endpoint() or 'AWS'}"
            return UserError(f"{where}: {code}: check bucket, region, credentials and rights")
        if status == 404:
            return NotFound(key)
        if status == 409:
            return _Undecided(code)
        if status == 412:
            return Conflict(code)
        if status == 416:
            return ValueError(f"{key}: asked for bytes beyond its end")
        return OSError(f"{self.url}: {key}: {error}")


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _client() -> Any:
    """This process's client for the settings in force: made once, safe over threads, never inherited by a fork."""
    key = (os.getpid(), *(os.environ.get(name) for name in SETTINGS))
    # Looked up without the lock first: a fork while another thread holds it would leave it locked for ever.
    if key not in _clients:
        with _clients_lock:
            if key not in _clients:
                _clients[key] = _new_client()
    return _clients[key]


def _new_client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": TRIES},
        s3={"addressing_style": "path"} if _endpoint() else {},
        # Servers other than AWS may not know the newer checksums, where we do not ask for one.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=32,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    # A session of its own: boto3's default session keeps the credentials that it saw first.
    return boto3.Session().client("s3", region_name=region, endpoint_url=_endpoint(), config=config)


def create_bucket(name: str) -> None:
    """Make a bucket; nothing happens where we have it already."""
    from botocore.exceptions import ClientError

    try:
        _client().create_bucket(Bucket=name)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
