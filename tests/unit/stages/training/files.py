"""A checkpoint's files, for tests that look into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.storage import Storage
from stages.training.restore import CheckpointFiles


@contextmanager
def checkpoint_files(storage: Storage, prefix: str) -> Iterator[CheckpointFiles]:
    """The checked files, in a folder for a while."""
    with TemporaryDirectory() as folder:
        files = CheckpointFiles(Path(folder))
        files.fetch(storage, prefix)
        yield files
