"""The formats by name. Light: no torch here."""

from __future__ import annotations

from typing import Literal

Format = Literal["npz", "timm", "hf", "safetensors"]
FORMATS: tuple[Format, ...] = ("npz", "timm", "hf", "safetensors")
FOLDERS: tuple[Format, ...] = ("timm", "hf")
"""Those of several files, in a folder."""
SUFFIXES: dict[str, Format] = {".npz": "npz", ".safetensors": "safetensors"}
"""Those of one file with arrays, and a description beside it."""
SETTINGS = ("config.json", "preprocessor_config.json")
FILES = ("model.safetensors", *SETTINGS)
"""What there may be in a folder; in place of the first, an index and the files that it names (`shard_index.py`)."""
