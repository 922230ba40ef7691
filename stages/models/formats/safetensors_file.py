"""Files of safetensors, whose own reader compares sizes before anything is read (huggingface/safetensors)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from cluster.errors import UserError
from stages.models.formats.arrays import finite
from stages.models.formats.rules import Shape

NUMBERS = ("F64", "F32", "F16", "BF16")
"""Types that weights have, as safetensors calls them."""
_BROKEN = (safetensors.SafetensorError, OSError, ValueError, RuntimeError, OverflowError, MemoryError, TypeError)


class SafetensorsFile:
    """The arrays of a file. Raises UserError for one that cannot be trusted."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = path.name, path
        try:
            with safetensors.safe_open(path, "pt") as file:
                names = list(file.keys())
                slices = {name: file.get_slice(name) for name in names}
                found = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
        except _BROKEN as error:
            raise UserError(f"{self.where}: it is no whole file of safetensors: {error}") from error
        if not found:
            raise UserError(f"{self.where}: has no arrays")
        for name, (shape, dtype) in found.items():
            if dtype not in NUMBERS:
                raise UserError(
                    f"{self.where}: {name} of shape {shape} has type {dtype}, expected {', '.join(NUMBERS)}"
                )
            if math.prod(shape) == 0:
                raise UserError(f"{self.where}: {name} has shape {shape}, expected no side of 0")
        self.shapes: Mapping[str, Shape] = {name: shape for name, (shape, _) in found.items()}

    def read(self, name: str) -> Tensor:
        try:
            with safetensors.safe_open(self._path, "pt") as file:
                tensor = file.get_tensor(name)
        except _BROKEN as error:
            raise UserError(f"{self.where}: {name} of shape {self.shapes[name]} cannot be read: {error}") from error
        return finite(self.where, name, tensor.float())


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Arrays as one file, in the order of their names, with the mark that other programs' loaders ask for."""
    ordered = {name: state[name].float().contiguous() for name in sorted(state)}
    safetensors.torch.save_file(ordered, path, metadata={"format": "pt"})
