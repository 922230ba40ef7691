"""Storage in an S3 bucket, or in any server that speaks S3 with conditional writes. The only importer of boto3.

Credentials, endpoint and region come from the standard environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION) or from wherever boto3 finds
them.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import UserError
from cluster.storage.base import Conflict, Digest, NotFound, Stat, file_digest

MULTIPART_BYTES = 16 * 2**20
REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "403"}
T = TypeVar("T")
_clients: dict[tuple[int, str], Any] = {}
_clients_lock = threading.Lock()


class S3Storage:
    """Keys below a prefix of a bucket; the tag is the ETag."""

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        if len(bucket) < 3:
            raise UserError(f"{url}: expected s3://BUCKET/PREFIX with a bucket of three letters or more")
        self.url = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""

    def read(self, key: str) -> bytes:
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        def get() -> tuple[bytes, str]:
            found = _client().get_object(Bucket=self._bucket, Key=self._prefix + key)
            return found["Body"].read(), found["ETag"]

        return self._call(key, get)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        def get() -> bytes:
            wanted = f"bytes={start}-{start + length - 1}"
            return _client().get_object(Bucket=self._bucket, Key=self._prefix + key, Range=wanted)["Body"].read()

        data = self._call(key, get) if length else b""
        if len(data) != length:
            raise ValueError(f"{key}: asked for {length} bytes from {start}, found {len(data)}")
        return data

    def stat(self, key: str) -> Stat | None:
        try:
            found = self._call(key, lambda: _client().head_object(Bucket=self._bucket, Key=self._prefix + key))
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
        digest = file_digest(path)
        self._call(key, lambda: _client().upload_file(str(path), self._bucket, self._prefix + key, Config=transfer))
        stored = self.stat(key)
        if stored is None or stored.bytes != digest.bytes:
            raise OSError(f"{key}: sent {digest.bytes} bytes, the storage has {stored.bytes if stored else 'none'}")
        return digest

    def download(self, key: str, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            self._call(key, lambda: _client().download_file(self._bucket, self._prefix + key, str(temporary)))
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
        self._call(key, lambda: _client().delete_object(Bucket=self._bucket, Key=self._prefix + key))

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        def put() -> str:
            found = _client().put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, **condition)
            return found["ETag"]

        return self._call(key, put)

    def _conditional(self, key: str, data: bytes, **condition: str) -> str:
        try:
            return self._put(key, data, **condition)
        except (Conflict, NotFound) as refused:
            # boto3 sends a request again when its response was lost; the second one then meets the
            # first one's body. An equal body is our own.
            try:
                body, tag = self.read_tagged(key)
            except NotFound:
                raise Conflict(f"{key} does not exist") from refused
            if body != data:
                raise Conflict(f"{key} has changed") from refused
            return tag

    def _pages(self, prefix: str, delimiter: str) -> Iterator[dict[str, Any]]:
        paginator = _client().get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, Delimiter=delimiter))
        while (page := self._call(prefix, lambda: next(pages, None))) is not None:
            yield page

    def _call(self, key: str, request: Callable[[], T]) -> T:
        """Make a request, and say its errors in this program's words."""
        from botocore.exceptions import ClientError, NoCredentialsError

        try:
            return request()
        except NoCredentialsError:
            raise UserError(f"{self.url}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code in REFUSED:
                endpoint = _endpoint() or "AWS"
                raise UserError(f"{self.url} at {endpoint}: {code}: check bucket, credentials and rights") from error
            if status == 404:
                raise NotFound(key) from None
            if status in (409, 412):
                raise Conflict(f"{key}: {code}") from error
            raise


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _client() -> Any:
    """This process's client for the endpoint in force: made once, safe over threads, never inherited by a fork."""
    key = (os.getpid(), f"{_endpoint()} {os.environ.get('AWS_ACCESS_KEY_ID')}")
    with _clients_lock:
        if key not in _clients:
            import boto3
            from botocore.config import Config

            config = Config(
                retries={"mode": "standard", "max_attempts": 5},
                s3={"addressing_style": "path"} if _endpoint() else {},
                # Servers other than AWS know the older checksums alone.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=32,
            )
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            _clients[key] = boto3.client("s3", region_name=region, endpoint_url=_endpoint(), config=config)
        return _clients[key]


def create_bucket(name: str) -> None:
    """Make a bucket; nothing happens where we have it already."""
    from botocore.exceptions import ClientError

    try:
        _client().create_bucket(Bucket=name)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
