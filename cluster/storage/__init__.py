"""Bytes by key, in a folder or in an S3 bucket; to read from, also on a web server."""

from cluster.errors import UserError
from cluster.storage.base import Conflict, Digest, NotFound, Stat, Storage

__all__ = ["Conflict", "Digest", "NotFound", "Stat", "Storage", "open_storage"]


def open_storage(url: str) -> Storage:
    """The storage at `file:///folder` or `s3://bucket/prefix`, or at `https://host/path`, which is read-only.

    Cheap; raises UserError for any other address.
    """
    if url.startswith("file://"):
        from cluster.storage.file import FileStorage

        return FileStorage(url)
    if url.startswith("s3://"):
        from cluster.storage.s3 import S3Storage

        return S3Storage(url)
    if url.startswith(("https://", "http://")):
        from cluster.storage.http import HttpStorage

        return HttpStorage(url)
    raise UserError(f"{url!r}: expected file:///FOLDER or s3://BUCKET/PREFIX, or https://HOST/PATH to read from")
