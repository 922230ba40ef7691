"""The index of a checkpoint in several files of safetensors, as Hugging Face's libraries write it. Light: no torch.

`model.safetensors.index.json` has a mapping `weight_map` of arrays to the files that they are in.
"""

from __future__ import annotations

import json
import re

from cluster.errors import UserError

INDEX = "model.safetensors.index.json"
MOST_SHARDS = 1000
MOST_BYTES = 64 * 2**20
"""Of an index."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
"""Of a file in the same folder; nothing else is opened."""


def read_index(where: str, text: bytes) -> dict[str, str]:
    """The file of each array. Raises UserError where it is no such index, or names a file outside its folder."""
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has {len(text):,} bytes, expected up to {MOST_BYTES:,}")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot be read as JSON: {error}") from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{where}: expected a mapping weight_map of arrays to the files that have them")
    for array, file in places.items():
        if not isinstance(file, str) or not _NAME.fullmatch(file):
            raise UserError(f"{where}: {array} is said to be in {file!r}: expected a .safetensors of the same folder")
    if (count := len(set(places.values()))) > MOST_SHARDS:
        raise UserError(f"{where}: names {count:,} files, expected up to {MOST_SHARDS:,}")
    return places
