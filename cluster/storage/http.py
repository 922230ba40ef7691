"""Reading from web servers and hubs: `https://host/path` and `http://host/path`. Nothing can be written there.

The bearer token in PATCHLINE_HTTP_TOKEN goes to the host in PATCHLINE_HTTP_TOKEN_HOST alone. Proxies come
from the usual variables (HTTPS_PROXY, HTTP_PROXY, NO_PROXY).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib.parse import quote, urlsplit

from cluster.errors import UserError
from cluster.storage.base import NotFound, Stat
from cluster.storage.keys import check_key
from cluster.storage.retry import Transient, patiently
from cluster.storage.transfer import check_part, content_range, whole_file
from cluster.storage.web import Answer, ask

WHOLE_BYTES = 64 * 2**20
"""How many bytes are read at most for a range, where a server knows no ranges and sends the file from its start."""
BLOCK_BYTES = 2**20
"""A download is written in blocks of this size."""
AS_IT_IS = "/%:@!$&'()*+,;=~"
"""Of a path, beside letters and digits: paths in addresses may be percent-encoded already."""


class HttpStorage:
    """Files below an address, by their path from there; a key may end in a query, as signed addresses do.

    The tag is the ETag, else the time of change, else the size. A body without Content-Length that ends
    early cannot be told from a shorter one.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            raise UserError(f"{url}: expected https://HOST/PATH without user, query and fragment")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"

    def read(self, key: str) -> bytes:
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        def get() -> tuple[bytes, str]:
            with self._ask(key) as answer:
                body = answer.read()
                return body, _tag(answer, len(body))

        return patiently(get)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            # HTTP has no empty ranges.
            if self.stat(key) is None:
                raise NotFound(self._name(key))
            return b""
        data = patiently(lambda: self._part(key, start, length))
        if len(data) != length:
            raise ValueError(f"{self._name(key)}: asked for {length} bytes from {start}, found {len(data)}")
        return data

    def stat(self, key: str) -> Stat | None:
        def get() -> Stat:
            # Not HEAD: an address that is signed for GET refuses it.
            with self._ask(key, {"Range": "bytes=0-0"}) as answer:
                size = self._size(key, answer)
                return Stat(bytes=size, tag=_tag(answer, size))

        try:
            return patiently(get)
        except NotFound:
            return None

    def download(self, key: str, path: Path) -> None:
        with whole_file(path) as file:
            download = _Download(file)

            def fetch() -> None:
                with self._ask(key, download.missing()) as answer:
                    download.take(answer)

            patiently(fetch)

    def list(self, prefix: str) -> NoReturn:
        self._refuse("has no list of its files: name each one")

    def sizes(self, prefix: str) -> NoReturn:
        self._refuse("has no list of its files: name each one")

    def list_folders(self, prefix: str, limit: int | None = None) -> NoReturn:
        self._refuse("has no list of its files: name each one")

    def write(self, key: str, data: bytes) -> NoReturn:
        self._refuse()

    def write_if_absent(self, key: str, data: bytes) -> NoReturn:
        self._refuse()

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> NoReturn:
        self._refuse()

    def upload(self, key: str, path: Path) -> NoReturn:
        self._refuse()

    def writer(self, key: str) -> NoReturn:
        self._refuse()

    def delete(self, key: str) -> NoReturn:
        self._refuse()

    def _refuse(self, why: str = "takes nothing: write to file:///FOLDER or s3://BUCKET/PREFIX") -> NoReturn:
        raise UserError(f"{self.url}: a web server is read-only and {why}")

    def _ask(self, key: str, headers: dict[str, str] | None = None) -> AbstractContextManager[Answer]:
        path, mark, query = key.partition("?")
        return ask(f"{self.url}/{quote(check_key(path), safe=AS_IT_IS)}{mark}{query}", headers or {}, self._name(key))

    def _name(self, key: str) -> str:
        """The address in messages: without the query, which may be a signature."""
        return f"{self.url}/{key.partition('?')[0]}"

    def _part(self, key: str, start: int, length: int) -> bytes:
        """The bytes that there are from `start`, at most `length`."""
        with self._ask(key, {"Range": f"bytes={start}-{start + length - 1}"}) as answer:
            if answer.status == 416:
                raise ValueError(f"{self._name(key)}: asked for {length} bytes from {start}, beyond its end")
            if answer.status == 200:
                return self._cut(key, answer, start + length)[start:]
            data = answer.read()
            check_part(answer.headers.get("Content-Range"), len(data), start, length)
            return data

    def _cut(self, key: str, answer: Answer, end: int) -> bytes:
        """The bytes up to `end` of an answer from a server that knows no ranges."""
        if end > WHOLE_BYTES:
            raise UserError(
                f"{self._name(key)}: its server knows no ranges, and the {end} bytes up to the end of the one asked "
                f"for are more than {WHOLE_BYTES}: copy the file to a server that does, or to S3"
            )
        data = answer.read(end)
        if len(data) < end:
            # Raises where the connection broke; at the file's end there is no more.
            answer.read(1)
        return data

    def _size(self, key: str, answer: Answer) -> int:
        """Of the whole file, from the answer to a range."""
        headers = answer.headers
        text = headers.get("Content-Length") if answer.status == 200 else headers.get("Content-Range")
        size = (text or "").rpartition("/")[2]
        if not size.isdecimal():
            raise OSError(f"{self._name(key)}: its server does not say its size")
        return int(size)


class _Download:
    """A file that is being fetched, with as many answers as it takes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._tag = file, ""

    def missing(self) -> dict[str, str]:
        """Headers that ask for what is not here yet, or for everything if the body is another one now."""
        held = self._file.tell()
        # Without a tag nobody can say whether the body is the same.
        return {"Range": f"bytes={held}-", "If-Range": self._tag} if held and self._tag else {}

    def take(self, answer: Answer) -> None:
        """Write an answer's bytes. Raises Transient where some are missing."""
        if answer.status == 206:
            first, _, size = content_range(answer.headers.get("Content-Range"))
            if first != self._file.tell():
                raise Transient(f"asked for bytes from {self._file.tell()}, those from {first} came")
            self._write(answer)
            if self._file.tell() != size:
                raise Transient(f"{self._file.tell()} bytes of {size} came")
            return
        self._file.seek(0)
        self._file.truncate()
        if answer.status == 416:
            raise Transient("the file is shorter than what came of it")
        etag = answer.headers.get("ETag", "")
        # A weak tag does not promise the same bytes.
        self._tag = etag if etag.startswith('"') else ""
        self._write(answer)

    def _write(self, answer: Answer) -> None:
        for block in answer.stream(BLOCK_BYTES):
            self._file.write(block)


def _tag(answer: Answer, size: int) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or str(size)
