"""Weights out of a checkpoint, into one safetensors file: streamed, in little memory, without torch.

A checkpoint's parts are safetensors files themselves, so a tensor's bytes are copied from one file to the
other as they are (https://github.com/huggingface/safetensors: eight bytes with the header's length, a JSON
header of names, shapes and places, the data).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.storage.base import ObjectWriter, Storage

CHUNK_BYTES = 8 * 2**20
"""Read and written at once."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where the bytes of one tensor lie."""

    key: str
    """Of the stored file."""
    start: int
    """First byte in that file."""
    length: int
    dtype: str
    """As safetensors calls it, for example F32."""
    shape: list[int]


def stored_tensors(storage: Storage, key: str) -> Iterator[tuple[str, StoredTensor]]:
    """Names and places of the tensors in a stored safetensors file; reads its header alone."""
    length = int.from_bytes(storage.read_range(key, 0, 8), "little")
    header: dict[str, Any] = json.loads(storage.read_range(key, 8, length))
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            yield (
                name,
                StoredTensor(
                    key=key, start=8 + length + start, length=stop - start, dtype=entry["dtype"], shape=entry["shape"]
                ),
            )


def checkpoint_tensors(storage: Storage, prefix: str, manifest: dict[str, Any], kind: str) -> dict[str, StoredTensor]:
    """A checkpoint's tensors of one kind ("weight", "average", …) by their parameters' names.

    Raises UserError where it has none.
    """
    found, kinds = {}, set()
    for part in manifest["parts"]:
        for name, tensor in stored_tensors(storage, f"{prefix}/{part['path']}"):
            parameter, _, own = name.rpartition("/")
            kinds.add(own)
            if own == kind:
                found[parameter] = tensor
    if not found:
        raise UserError(f"{prefix} has no {kind}; it has {', '.join(sorted(kinds))}")
    return found


def write_safetensors(storage: Storage, tensors: dict[str, StoredTensor], sink: ObjectWriter) -> None:
    """Copy tensors into one safetensors file, in the order of their names. Memory: one chunk.

    The bytes are those that safetensors itself writes for the same fp32 tensors.
    """
    header, place = {}, 0
    for name in sorted(tensors):
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [place, place + tensor.length],
        }  # fmt: skip
        place += tensor.length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sink.write(len(text).to_bytes(8, "little"))
    sink.write(text)
    for name in sorted(tensors):
        tensor = tensors[name]
        for offset in range(0, tensor.length, CHUNK_BYTES):
            length = min(CHUNK_BYTES, tensor.length - offset)
            sink.write(storage.read_range(tensor.key, tensor.start + offset, length))
