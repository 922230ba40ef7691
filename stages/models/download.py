"""The weights' file of a model output, brought from storage and compared with its manifest. Light: no torch here."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError, check_format
from cluster.storage.base import Storage, file_digest
from stages.context import Output

FORMAT = 1
WEIGHTS = "model.safetensors"


def download_weights(storage: Storage, output: Output, folder: Path) -> Path:
    """The file with the fp32 weights of a model output, in `folder`.

    Raises UserError where it is none, too new, or not as its manifest says; NotFound where it is gone.
    """
    if output.kind != "model":
        raise UserError(f"{output.prefix} is a {output.kind}, not a model: refer to a pretrain or finetune stage")
    check_format(output.meta["format"], FORMAT, output.prefix)
    entry = next((file for file in output.manifest["files"] if file["path"] == WEIGHTS), None)
    if entry is None:
        raise UserError(f"{output.prefix} has no {WEIGHTS} in its manifest: it is no model of this program")
    path = folder / WEIGHTS
    storage.download(output.key(WEIGHTS), path)
    found = file_digest(path).sha256
    if found != entry["sha256"]:
        raise UserError(f"{output.key(WEIGHTS)} has sha256 {found}, its manifest says {entry['sha256']}: damaged")
    return path
