"""Files of named arrays, read with distrust: what they claim is compared with what they are before anything is made.

A file says names and shapes first. Only arrays whose shapes are those of the network are read, one at a time.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cluster.errors import UserError
from stages.models.formats.rules import Shape

SHOWN = 6
"""Names in a message; of more, their number."""


class ArrayFile(Protocol):
    """Arrays by name."""

    where: str
    """For messages."""
    shapes: Mapping[str, Shape]

    def read(self, name: str) -> Tensor:
        """One of them, as float32. Raises UserError where it cannot be read."""
        ...


@dataclass(frozen=True)
class Part:
    """Where an array is to be found in a file."""

    name: str
    index: int | None = None
    """Of its first axis, where the file has the arrays of all blocks in one."""
    row_before: bool = False
    """Whether a row of zeros is missing before it: position embeddings without one for the class token."""


class View:
    """A file's arrays under other names: prefixes taken away, stacked blocks apart."""

    def __init__(self, file: ArrayFile, parts: Mapping[str, Part]) -> None:
        self.where, self._file, self._parts = file.where, file, dict(parts)
        self._last: tuple[str, Tensor] | None = None
        self.shapes: dict[str, Shape] = {name: self._shape(part) for name, part in parts.items()}

    def own_name(self, name: str) -> str:
        """What the file itself calls it."""
        return self._parts[name].name if name in self._parts else name

    def with_row_before(self, name: str) -> View:
        """The same, with a row of zeros before one of them."""
        part = self._parts[name]
        return View(self._file, {**self._parts, name: Part(part.name, part.index, row_before=True)})

    def without(self, names: Iterable[str]) -> View:
        """The same without some of them."""
        gone = set(names)
        return View(self._file, {name: part for name, part in self._parts.items() if name not in gone})

    def read(self, name: str) -> Tensor:
        part = self._parts[name]
        if part.index is None:
            found = self._file.read(part.name)
        else:
            # The arrays of all blocks are one: it is read once for as long as it is asked for.
            if self._last is None or self._last[0] != part.name:
                self._last = (part.name, self._file.read(part.name))
            found = self._last[1][part.index]
        found = found.reshape(_squeezed(tuple(found.shape)))
        return torch.cat([torch.zeros_like(found[:, :1]), found], dim=1) if part.row_before else found

    def _shape(self, part: Part) -> Shape:
        shape = self._file.shapes[part.name]
        shape = _squeezed(shape if part.index is None else shape[1:])
        return (shape[0], shape[1] + 1, *shape[2:]) if part.row_before else shape


def _squeezed(shape: Shape) -> Shape:
    """GroupNorm's vectors stand as [1, 1, 1, O] in some of Google's files."""
    return shape[3:] if len(shape) == 4 and shape[:3] == (1, 1, 1) else shape


def choose(where: str, names: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """The names that patterns such as `params/txt/*` mean. Raises UserError for a pattern that means none."""
    known, found = list(names), dict[str, None]()
    for pattern in patterns:
        matched = fnmatch.filter(known, pattern)
        if not matched:
            raise UserError(f"{where}: drop={pattern}: there is no such array")
        found.update(dict.fromkeys(matched))
    return tuple(found)


def check(file: View, expected: Mapping[str, Shape], family: str) -> None:
    """Raise UserError where a file's arrays are not those of a network: each by its name and both shapes."""
    unknown = [name for name in file.shapes if name not in expected]
    if unknown:
        named = [f"{file.own_name(name)} {file.shapes[name]}" for name in unknown]
        raise UserError(
            f"{file.where}: no {family} of ours has {shown(named)}: leave them out with drop where the "
            "network is the same without them"
        )
    for name, shape in expected.items():
        if name not in file.shapes:
            raise UserError(f"{file.where}: has no array {name}, expected one of shape {shape}")
        if file.shapes[name] != shape:
            found = file.shapes[name]
            raise UserError(f"{file.where}: {file.own_name(name)} has shape {found}, expected {shape}")


def shape_of(view: View, name: str, axes: int, family: str = "Vision Transformer") -> Shape:
    """An array's shape. Raises UserError where it is not there, or has another number of axes."""
    if name not in view.shapes:
        raise UserError(f"{view.where}: has no array {name}, so it is no {family} in this format")
    shape = view.shapes[name]
    if len(shape) != axes:
        raise UserError(f"{view.where}: {view.own_name(name)} has shape {shape}, expected {axes} axes")
    return shape


def finite(where: str, name: str, tensor: Tensor) -> Tensor:
    """The tensor. Raises UserError where some of it is no number."""
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise UserError(
            f"{where}: {name} of shape {tuple(tensor.shape)} has {count:,} values that are NaN or infinite: "
            "expected none"
        )
    return tensor


def shown(names: list[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
