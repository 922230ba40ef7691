"""Weights out of a checkpoint, into one safetensors file: streamed, in little memory, without torch.

A checkpoint's parts are safetensors files themselves, so a tensor's bytes are copied from one file to the
other as they are (https://github.com/huggingface/safetensors: eight bytes with the header's length, a JSON
header of names, shapes and places, the data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.storage.base import ObjectWriter, Storage

CHUNK_BYTES = 8 * 2**20
"""Read and written at once."""


@dataclass(frozen=True, kw_only=True)
class StoredPiece:
    """Where consecutive elements of a tensor lie."""

    key: str
    """Of the stored file."""
    start: int
    """First byte in that file."""
    length: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A whole tensor, in pieces."""

    pieces: tuple[StoredPiece, ...]
    """In the order of their elements."""
    dtype: str
    """As safetensors calls it, for example F32."""
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes."""
        return sum(piece.length for piece in self.pieces)


def checkpoint_tensors(storage: Storage, prefix: str, manifest: dict[str, Any], kind: str) -> dict[str, StoredTensor]:
    """A checkpoint's tensors of one kind ("weight", "average", …) by their parameters' names.

    Reads the headers of its files alone. Raises UserError where it has none of the kind.
    """
    found: dict[str, list[tuple[int, StoredPiece, str, tuple[int, ...]]]] = {}
    kinds: set[str] = set()
    for part in manifest["parts"]:
        for name, first, piece, dtype, shape in _stored_pieces(storage, f"{prefix}/{part['path']}"):
            parameter, _, own = name.rpartition("/")
            kinds.add(own)
            if own == kind:
                found.setdefault(parameter, []).append((first, piece, dtype, shape))
    if not found:
        raise UserError(f"{prefix} has no {kind}; it has {', '.join(sorted(kinds))}")
    return {name: _whole(f"{prefix}: {name}", pieces) for name, pieces in found.items()}


def _whole(name: str, found: list[tuple[int, StoredPiece, str, tuple[int, ...]]]) -> StoredTensor:
    pieces, dtype, shape = sorted(found, key=lambda entry: entry[0]), found[0][2], found[0][3]
    size, place = 4 * math.prod(shape), 0
    for first, piece, _, _ in pieces:
        if 4 * first != place:
            raise UserError(f"{name} is not whole: a piece begins at element {first}, expected {place // 4}")
        place += piece.length
    if place != size:
        raise UserError(f"{name} is not whole: its pieces have {place} bytes, expected {size}")
    return StoredTensor(pieces=tuple(piece for _, piece, _, _ in pieces), dtype=dtype, shape=shape)


def checkpoint_kinds(storage: Storage, prefix: str, manifest: dict[str, Any]) -> set[str]:
    """What a checkpoint has of each parameter: "weight", "exp_avg", "average", …"""
    first = manifest["parts"][0]["path"]
    return {name.rpartition("/")[2] for name, *_ in _stored_pieces(storage, f"{prefix}/{first}")}


def _stored_pieces(storage: Storage, key: str) -> Iterator[tuple[str, int, StoredPiece, str, tuple[int, ...]]]:
    """Name, first element, place, type, and shape of the whole, of each piece in a part of a checkpoint."""
    length = int.from_bytes(storage.read_range(key, 0, 8), "little")
    header: dict[str, Any] = json.loads(storage.read_range(key, 8, length))
    places = header.pop("__metadata__", {})
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        piece = StoredPiece(key=key, start=8 + length + start, length=stop - start)
        # The first checkpoints had whole tensors alone.
        whole = f"0 {','.join(map(str, entry['shape']))}"
        first, shape = read_place(places.get(name, whole))
        yield name, first, piece, entry["dtype"], shape


def read_place(text: str) -> tuple[int, tuple[int, ...]]:
    """First element and whole shape, of a piece's entry in `__metadata__` (`stages/training/snapshot.py`)."""
    start, _, shape = text.partition(" ")
    return int(start), tuple(int(size) for size in shape.split(",") if size)


def write_safetensors(storage: Storage, tensors: dict[str, StoredTensor], sink: ObjectWriter) -> None:
    """Copy tensors into one safetensors file, in the order of their names. Memory: one chunk.

    The bytes are those that safetensors itself writes for the same fp32 tensors.
    """
    header, place = {}, 0
    for name in sorted(tensors):
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [place, place + tensor.length],
        }  # fmt: skip
        place += tensor.length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sink.write(len(text).to_bytes(8, "little"))
    sink.write(text)
    for name in sorted(tensors):
        for piece in tensors[name].pieces:
            for offset in range(0, piece.length, CHUNK_BYTES):
                length = min(CHUNK_BYTES, piece.length - offset)
                sink.write(storage.read_range(piece.key, piece.start + offset, length))
