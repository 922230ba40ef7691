"""Reading checkpoints: what the manifest promises is what is there, or the checkpoint is refused by name."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from cluster.errors import UserError
from cluster.storage.base import Storage, file_digest
from cluster.storage.many import FILES_AT_ONCE, at_once
from stages.models.weights_out import read_place
from stages.training.manifest import Damaged, Position, check_stored, read_manifest

MANIFEST = "MANIFEST.json"


class CheckpointFiles:
    """A checkpoint's files in a folder of this machine, checked against the manifest when they were brought there.

    Tensors come one at a time, straight from the files, so memory does not grow with the model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """As `read_manifest` has it."""
        return json.loads((self._folder / MANIFEST).read_text())

    @property
    def position(self) -> Position:
        """Where the run stood."""
        return Position(**{field.name: self.manifest[field.name] for field in fields(Position)})

    def check_own(self, *, identity: str, data: str) -> None:
        """Raises Damaged where it is another stage's, or was made from other data. The first ones do not tell."""
        for name, own in (("identity", identity), ("data", data)):
            found = self.manifest.get(name) or own
            if found != own:
                raise Damaged(f"its {name} is {found}; this stage's is {own}")

    def fetch(self, storage: Storage, prefix: str) -> None:
        """Bring manifest and files here. Raises Damaged."""
        manifest = read_manifest(storage, prefix)
        (self._folder / MANIFEST).write_text(json.dumps(manifest))
        at_once(lambda part: self._fetch(storage, prefix, part), manifest["parts"], threads=FILES_AT_ONCE)

    def _fetch(self, storage: Storage, prefix: str, part: dict[str, Any]) -> None:
        key, path = f"{prefix}/{part['path']}", self._folder / part["path"]
        check_stored(storage, key, part)
        for _ in range(2):
            # Twice: this machine, or the way to it, may have been wrong.
            storage.download(key, path)
            found = file_digest(path)
            if found.sha256 == part["sha256"]:
                return
        raise Damaged(f"{key} has sha256 {found.sha256}; its manifest says {part['sha256']}")

    def tensors(self, *, keys: frozenset[str] | None = None) -> Iterator[tuple[str, str, Tensor]]:
        """The whole tensors as (parameter, "weight" or state name, fp32 tensor), all or those of these names.

        One at a time, put together from the ranks' pieces. Raises Damaged where pieces are missing.
        """
        with ExitStack() as stack:
            pieces: dict[str, list[tuple[int, tuple[int, ...], Any]]] = {}
            for part in self.manifest["parts"]:
                file = stack.enter_context(safe_open(self._folder / part["path"], framework="pt"))
                places = file.metadata() or {}
                for full in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if keys is None or full.rpartition("/")[2] in keys:
                        # The first checkpoints had whole tensors alone.
                        whole = f"0 {','.join(map(str, file.get_slice(full).get_shape()))}"
                        start, shape = read_place(places.get(full, whole))
                        pieces.setdefault(full, []).append((start, shape, file))
            for full in sorted(pieces):
                name, _, key = full.rpartition("/")
                yield name, key, _whole(full, pieces[full])


def _whole(full: str, pieces: list[tuple[int, tuple[int, ...], Any]]) -> Tensor:
    found = [file.get_tensor(full).flatten() for _, _, file in sorted(pieces, key=lambda piece: piece[0])]
    starts, shape = sorted(piece[0] for piece in pieces), pieces[0][1]
    ends = list(itertools.accumulate(part.numel() for part in found))
    if starts != [0, *ends[:-1]] or ends[-1] != math.prod(shape):
        raise Damaged(f"{full} is not whole: its pieces begin at {starts} and end at {ends}")
    return (found[0] if len(found) == 1 else torch.cat(found)).reshape(shape)


def load_weights(model: nn.Module, files: CheckpointFiles) -> None:
    """Put a checkpoint's weights into a model. Raises Damaged where it lacks any; UserError where it is another's."""
    own = model.state_dict()
    for name, _, value in files.tensors(keys=frozenset({"weight"})):
        if name not in own or own[name].shape != value.shape:
            raise UserError(
                f"the checkpoint has {name} {tuple(value.shape)}, which the model has not: it is of another version"
            )
        own.pop(name).copy_(value)
    if own:
        raise Damaged(f"the checkpoint lacks {', '.join(own)}")
