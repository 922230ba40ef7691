"""Arrays in several files of safetensors with an index, read as one file, and as distrustfully."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cluster.errors import UserError
from stages.models.formats.arrays import ArrayFile, shown
from stages.models.formats.rules import Shape
from stages.models.formats.safetensors_file import SafetensorsFile
from stages.models.formats.shard_index import INDEX, read_index


class ShardedFile:
    """The arrays of all files that an index names. Raises UserError where they are not those that it says."""

    def __init__(self, index: Path) -> None:
        self.where = index.name
        places = read_index(index.name, index.read_bytes())
        self._files = {name: self._open(index.parent / name) for name in sorted(set(places.values()))}
        self._of: dict[str, str] = {}
        for name, file in self._files.items():
            for array in file.shapes:
                if array in self._of:
                    raise UserError(f"{self.where}: {array} is in {self._of[array]} and in {name}")
                self._of[array] = name
        for array, name in places.items():
            if self._of.get(array) != name:
                where = f"it is in {self._of[array]}" if array in self._of else "it is not there"
                raise UserError(f"{self.where}: {array} is said to be in {name}: {where}")
        if unknown := [array for array in self._of if array not in places]:
            raise UserError(f"{self.where}: does not name {shown(unknown)}, which its files have")
        self.shapes: Mapping[str, Shape] = {
            array: self._files[self._of[array]].shapes[array] for array in sorted(self._of)
        }

    def read(self, name: str) -> Tensor:
        return self._files[self._of[name]].read(name)

    def _open(self, path: Path) -> SafetensorsFile:
        if not path.is_file():
            raise UserError(f"{self.where}: {path.name}, which it names, is not there")
        return SafetensorsFile(path)


def open_arrays(file: Path) -> ArrayFile:
    """A file of safetensors, or all those that an index names. Raises UserError."""
    return ShardedFile(file) if file.name == INDEX else SafetensorsFile(file)
