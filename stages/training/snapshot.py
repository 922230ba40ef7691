"""A rank's part of the training state: copied while training stands, written while it goes on.

A part is a safetensors file of flat pieces, `<parameter>/<key>`, each with its place in the whole tensor:
`__metadata__` has "<start> <shape>" by name. So nothing is gathered to save, and anything reads it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.storage.base import ObjectWriter
from stages.training.tensors import Piece

CHUNK_BYTES = 8 * 2**20
"""Handed to storage at once."""


class Snapshot:
    """The copy of one rank's pieces, in one block of memory that every checkpoint uses again."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._memory = torch.empty(0)
        self._pieces: list[Piece] = []

    def take(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces here. On a GPU, returns when they have arrived."""
        total = sum(piece.tensor.numel() for piece in pieces)
        if self._memory.numel() < total:
            # The first one makes the memory, and pays for its pages.
            self._memory = torch.empty(total, dtype=torch.float32, pin_memory=self._pinned)
        self._pieces, place = [], 0
        for piece in pieces:
            kept = self._memory[place : place + piece.tensor.numel()]
            kept.copy_(piece.tensor, non_blocking=self._pinned)
            self._pieces.append(
                Piece(name=piece.name, key=piece.key, start=piece.start, tensor=kept, shape=piece.shape)
            )
            place += piece.tensor.numel()
        if self._pinned:
            torch.cuda.synchronize()

    def write(self, sink: ObjectWriter) -> None:
        """Write the safetensors file. Memory: none beyond the copy."""
        ordered = sorted(self._pieces, key=lambda piece: f"{piece.name}/{piece.key}")
        header: dict[str, object] = {"__metadata__": {f"{p.name}/{p.key}": _place(p) for p in ordered}}
        end = 0
        for piece in ordered:
            start, end = end, end + 4 * piece.tensor.numel()
            header[f"{piece.name}/{piece.key}"] = {
                "dtype": "F32", "shape": [piece.tensor.numel()], "data_offsets": [start, end],
            }  # fmt: skip
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        sink.write(len(text).to_bytes(8, "little") + text)
        for piece in ordered:
            _write_tensor(piece.tensor, sink)


def _write_tensor(tensor: Tensor, sink: ObjectWriter) -> None:
    data = tensor.numpy().data.cast("B")
    for start in range(0, len(data), CHUNK_BYTES):
        sink.write(data[start : start + CHUNK_BYTES])


def _place(piece: Piece) -> str:
    return f"{piece.start} {','.join(map(str, piece.shape))}"
