"""NumPy's archives of arrays, read without trust and without pickle.

What an archive claims is looked at first: sizes in its directory, then the header of each array, which have to agree
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html). Only then are bytes unpacked.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from cluster.errors import UserError
from stages.models.formats.arrays import finite
from stages.models.formats.rules import Shape

UNPACKED_BYTES = 256 * 2**20
UNPACKED_TIMES = 20
"""An archive may unpack to so many bytes, and to so many times its size more: a last layer of zeros packs well, and
weights do not."""
MEMBERS = 20_000
"""Most arrays of an archive: ViT-G has 800, and two or three times as many with its optimizer."""
HEADER_BYTES = 2**16
"""Most that is read of an array to find its shape."""
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, KeyError, IndexError),
    *(NotImplementedError, RuntimeError, OverflowError, MemoryError, SyntaxError, TypeError),
)
"""What Python's and NumPy's readers raise of a file that is not what it seems."""


class NpzFile:
    """The arrays of an archive. Raises UserError for one that cannot be trusted."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = path.name, path
        # Opened once: to open it takes as long as it has members.
        with self._reading("it is no whole archive of arrays"):
            self._archive = zipfile.ZipFile(path)
            members = self._archive.infolist()
        self._members = self._named(members)
        self._check_sizes(members)
        self._headers = {name: self._header(name) for name in self._members}
        self.shapes: Mapping[str, Shape] = {name: shape for name, (shape, _, _) in self._headers.items()}

    def read(self, name: str) -> Tensor:
        with self._reading(f"{name} of shape {self.shapes[name]} cannot be read"):
            shape, fortran, dtype = self._headers[name]
            with self._archive.open(self._members[name]) as file:
                _read_header(file)
                data = file.read()
            flat = np.frombuffer(data, dtype=dtype)
            array = flat.reshape(shape, order="F" if fortran else "C")
            tensor = torch.from_numpy(_as_float32(array))
        return finite(self.where, name, tensor)

    def _named(self, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        if len(members) > MEMBERS:
            raise UserError(f"{self.where}: has {len(members):,} arrays, and at most {MEMBERS:,} are read")
        found: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise UserError(f"{self.where}: {member.filename} is no array: expected names that end in .npy")
            if name in found:
                raise UserError(f"{self.where}: has {name} twice")
            found[name] = member
        if not found:
            raise UserError(f"{self.where}: has no arrays")
        return found

    def _check_sizes(self, members: list[zipfile.ZipInfo]) -> None:
        claimed, size = sum(member.file_size for member in members), self._path.stat().st_size
        if claimed > UNPACKED_BYTES + UNPACKED_TIMES * size:
            raise UserError(
                f"{self.where}: has {size:,} bytes and would unpack to {claimed:,}: no weights pack so well"
            )

    def _header(self, name: str) -> tuple[Shape, bool, np.dtype]:
        member = self._members[name]
        with self._reading(f"{name} cannot be read"), self._archive.open(member) as file:
            shape, fortran, dtype = _read_header(file)
            begin = file.tell()
        if dtype.hasobject:
            raise UserError(
                f"{self.where}: {name} of shape {shape} is pickled, which could run anything: expected numbers"
            )
        if not _is_number(dtype):
            raise UserError(f"{self.where}: {name} of shape {shape} has type {dtype}, expected floating-point numbers")
        if 0 in shape or min(shape, default=1) < 0:
            raise UserError(f"{self.where}: {name} has shape {shape}, expected no side of 0")
        expected = math.prod(shape) * dtype.itemsize
        if member.file_size - begin != expected:
            raise UserError(
                f"{self.where}: {name} has {member.file_size - begin:,} bytes; its shape {shape} of {dtype} takes "
                f"{expected:,}"
            )
        return shape, fortran, dtype

    @contextmanager
    def _reading(self, trouble: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except _BROKEN as error:
            raise UserError(f"{self.where}: {trouble}: {type(error).__name__}: {error}") from error


def _read_header(file: IO[bytes]) -> tuple[Shape, bool, np.dtype]:
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of its header is not known")
    return read(file, max_header_size=HEADER_BYTES)


def _is_number(dtype: np.dtype) -> bool:
    # Raw pairs of bytes are bfloat16, which NumPy has no name for (big_vision `utils.py`, `recover_dtype`).
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None)


def _as_float32(array: NDArray) -> NDArray[np.float32]:
    if array.dtype.kind == "V":
        # The upper half of a float32 is its bfloat16.
        return (np.ascontiguousarray(array).view("<u2").astype(np.uint32) << 16).view(np.float32)
    return np.array(array, dtype=np.float32, order="C")


def write_npz(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Arrays as one archive, not packed, in the order of their names: equal arrays give equal bytes."""
    np.savez(path, allow_pickle=False, **{name: arrays[name].numpy() for name in sorted(arrays)})
