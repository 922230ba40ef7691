"""The pictures of an output, to be put into a page."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping

from cluster.sizes import size
from cluster.storage import NotFound, Storage
from pipeline.report.document import Picture
from stages.context import Output

EACH_BYTES, ALL_BYTES = 3_000_000, 12_000_000
"""Of a single picture, and of all in a page: a page is to be sent by mail."""
PNG = b"\x89PNG\r\n\x1a\n"
FIRST = ("rollout.png",)
"""What is looked at first: example images with what the network attends to."""


class Album:
    """Reads the pictures of a report's stages, as long as there is room for them."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._left = storage, ALL_BYTES

    def pictures(self, output: Output, captions: Mapping[str, str]) -> list[Picture]:
        """Those of one output; `captions` are by file name."""
        files = {file["path"]: int(file["bytes"]) for file in output.manifest["files"]}
        names = sorted((name for name in files if name.endswith(".png")), key=lambda name: (name not in FIRST, name))
        return [self._picture(output.key(name), name, captions.get(name, ""), files[name]) for name in names]

    def _picture(self, key: str, name: str, caption: str, length: int) -> Picture:
        data, problem, width, height = None, "", 0, 0
        if length > min(EACH_BYTES, self._left):
            problem = f"{size(length)} are too many for this page"
        else:
            try:
                body = self._storage.read(key)
            except NotFound:
                body, problem = b"", "it is gone"
            if body.startswith(PNG) and len(body) >= 24:
                # Its first chunk begins with its size.
                width, height = struct.unpack(">II", body[16:24])
                data = base64.b64encode(body).decode()
                self._left -= len(body)
            problem = problem or ("" if data is not None else "it is no PNG")
        address = f"{self._storage.url}/{key}"
        size_ = {"width": width, "height": height}
        return Picture(name=name, caption=caption, address=address, data=data, problem=problem, **size_)
