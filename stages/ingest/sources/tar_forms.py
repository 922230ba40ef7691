"""What the first members of a tar say that it is."""

from __future__ import annotations

from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

from stages.ingest.headers import SUFFIXES
from stages.ingest.sources.tar_members import tar_members

LOOKED_AT = 200
"""Members that are looked at."""
LABELS = ("cls", "json", "txt")
"""Extensions of the members that hold the labels of WebDataset samples."""


def tar_form(path: Path) -> Literal["archives", "webdataset"] | None:
    """`webdataset` where an image has a label beside it, `archives` where it holds tars, or images and hardly
    anything else; None else.

    Raises UserError where the tar is damaged.
    """
    images, labels = set[str](), set[str]()
    for member in islice(tar_members(path), LOOKED_AT):
        name = PurePosixPath(member.name)
        key, _, extension = name.name.partition(".")
        sample = str(name.with_name(key)) if key else member.name
        if name.suffix.lower() == ".tar":
            return "archives"
        if name.suffix.lower() in SUFFIXES:
            images.add(sample)
        elif extension.lower() in LABELS:
            labels.add(sample)
    if images & labels:
        return "webdataset"
    # Beside the images of a class there may be a few texts.
    return "archives" if 2 * len(labels) < len(images) else None
