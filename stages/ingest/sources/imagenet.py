"""What ILSVRC 2012 has beside its images: the validation labels, which were published in three forms."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cluster.errors import UserError

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
KAGGLE = "LOC_val_solution.csv"
CLASS_NAMES = "LOC_synset_mapping.txt"

_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"


def labels_file(folder: Path) -> Path:
    """The file with the validation labels. Raises UserError where there is none."""
    names = (DEVKIT, SYNSET_LABELS, KAGGLE)
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder / VALIDATION} has no labels: put one of {', '.join(names)} beside it")


def validation_labels(file: Path, images: Sequence[str]) -> list[str]:
    """WordNet ID of each of the validation images, whose names are sorted. Raises UserError."""
    if file.name == KAGGLE:
        return _of_kaggle(file, images)
    labels = _of_devkit(file) if file.name == DEVKIT else file.read_text().split()
    if len(labels) != len(images):
        raise UserError(f"{file} has {len(labels)} labels and {VALIDATION} {len(images)} images: fetch both again")
    return labels


def _of_devkit(file: Path) -> list[str]:
    """The ground truth has a number for each image, and `meta.mat` says which class has which: not the n-th one."""
    wanted: dict[str, bytes] = {}
    try:
        with tarfile.open(file, "r:gz") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                for name in (_GROUND_TRUTH, _META):
                    if content is not None and member.name.endswith(name):
                        wanted[name] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{file} is no .tar.gz that can be read: {error}; fetch it again") from error
    if len(wanted) < 2:
        raise UserError(f"{file} lacks {_GROUND_TRUTH} or {_META}: fetch the development kit of task 1 and 2 again")
    classes = _wordnet_ids(wanted[_META], file)
    numbers = wanted[_GROUND_TRUTH].decode(errors="replace").split()
    unknown = next((number for number in numbers if number not in classes), None)
    if unknown is not None:
        raise UserError(f"{file}: {_GROUND_TRUTH} has class {unknown}, {_META} does not: fetch it again")
    return [classes[number] for number in numbers]


def _wordnet_ids(meta: bytes, file: Path) -> dict[str, str]:
    """WordNet ID by ILSVRC2012_ID in digits, of all 1,860 synsets of the hierarchy; the first 1,000 have images."""
    # It takes half a second, and few need it.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        return {str(int(synset["ILSVRC2012_ID"])): str(synset["WNID"]) for synset in synsets}
    except (ValueError, KeyError, TypeError, IndexError, OSError, MatReadError) as error:
        raise UserError(
            f"{file}: {_META} has no synsets with ILSVRC2012_ID and WNID ({error}): fetch it again"
        ) from error


def _of_kaggle(file: Path, images: Sequence[str]) -> list[str]:
    """Lines of `image,boxes`; a box is a WordNet ID and four numbers, and all boxes of an image have the same ID."""
    with open(file, newline="") as opened:
        rows = {row.get("ImageId"): (row.get("PredictionString") or "").split() for row in csv.DictReader(opened)}
    unknown = [name for name in images if not rows.get(PurePosixPath(name).stem)]
    if unknown:
        raise UserError(f"{file} has no label for {unknown[0]} and {len(unknown) - 1} other images: fetch it again")
    return [rows[PurePosixPath(name).stem][0] for name in images]
