"""A storage behind a network that loses answers."""

from __future__ import annotations

from cluster.storage.file import FileStorage


class LossyStorage(FileStorage):
    """Stores what it is given; while `losing`, the writer is told that it failed."""

    losing = False

    def write(self, key: str, data: bytes) -> str:
        tag = super().write(key, data)
        if self.losing:
            raise ConnectionResetError("the answer was lost")
        return tag
