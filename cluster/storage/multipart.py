"""Writing an object to S3 while its bytes are still being made: part after part, visible when all are there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from cluster.storage.base import Digest

PART_BYTES = 16 * 2**20
"""Of each part but the last: with S3's 10,000 parts, objects of up to 156 GiB."""
PARTS_AHEAD = 2
"""Parts that are on their way while the next one is being made; so memory is (PARTS_AHEAD + 1) parts."""

Request = Callable[[Callable[[], Any]], Any]
"""Makes a request with the storage's own retries and words for errors."""


class MultipartWriter:
    """Takes bytes in order. `digest` is there once the object is visible."""

    def __init__(self, client: Any, request: Request, bucket: str, key: str) -> None:
        self._client, self._request = client, request
        # Without TLS the signature has the sha256 of each part already, and the server checks it.
        encrypted = str(client.meta.endpoint_url).startswith("https://")
        self._checksum = {"ChecksumAlgorithm": "SHA256"} if encrypted else {}
        self._place = {"Bucket": bucket, "Key": key}
        self._buffer, self._sha256, self._bytes = bytearray(), hashlib.sha256(), 0
        self._upload: str | None = None
        self._parts: list[Future[dict[str, Any]]] = []
        self._pool = ThreadPoolExecutor(PARTS_AHEAD, thread_name_prefix="multipart")
        self.digest: Digest | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take some more bytes; blocks while PARTS_AHEAD parts are on their way."""
        self._sha256.update(data)
        self._bytes += len(data)
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            body, self._buffer = self._buffer, self._buffer[PART_BYTES:]
            del body[PART_BYTES:]
            self._send(body)
        return len(data)

    def finish(self) -> None:
        """Send what is left and make the object visible."""
        if self._upload is None:
            body = bytes(self._buffer)
            self._request(lambda: self._client.put_object(**self._place, Body=body))
        else:
            if self._buffer:
                self._send(self._buffer)
            parts = [part.result() for part in self._parts]
            upload = {**self._place, "UploadId": self._upload, "MultipartUpload": {"Parts": parts}}
            self._request(lambda: self._client.complete_multipart_upload(**upload))
        self._pool.shutdown()
        self.digest = Digest(bytes=self._bytes, sha256=self._sha256.hexdigest())

    def abort(self) -> None:
        """Drop everything. What a killed process leaves is dropped by the bucket's own rule for unfinished uploads."""
        self._pool.shutdown(cancel_futures=True)
        if self._upload is not None:
            upload = {**self._place, "UploadId": self._upload}
            with suppress(Exception):
                # The error that led here is the one to tell.
                self._client.abort_multipart_upload(**upload)

    def _send(self, body: bytearray) -> None:
        if self._upload is None:
            started = self._request(lambda: self._client.create_multipart_upload(**self._place, **self._checksum))
            self._upload = str(started["UploadId"])
        if len(self._parts) >= PARTS_AHEAD:
            self._parts[-PARTS_AHEAD].result()
        self._parts.append(self._pool.submit(self._part, len(self._parts) + 1, body))

    def _part(self, number: int, body: bytearray) -> dict[str, Any]:
        part = {**self._place, **self._checksum, "UploadId": self._upload, "PartNumber": number}
        answer = self._request(lambda: self._client.upload_part(**part, Body=body))
        found = {"PartNumber": number, "ETag": answer["ETag"]}
        return {**found, "ChecksumSHA256": answer["ChecksumSHA256"]} if "ChecksumSHA256" in answer else found


@contextmanager
def multipart(client: Any, request: Request, bucket: str, key: str) -> Iterator[MultipartWriter]:
    """A writer whose object becomes visible at the end of the block, and never where the block raises."""
    writer = MultipartWriter(client, request, bucket, key)
    try:
        yield writer
        writer.finish()
    except BaseException:
        writer.abort()
        raise
