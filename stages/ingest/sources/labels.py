"""From labels as a table has them, integers or names, to classes and their numbers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError

MOST_CLASSES = 1_000_000
"""Integer labels beyond are taken for a mistake: every number below the largest one is a class."""


class Labels:
    """Collects the labels of one image after another, each distinct one kept once.

    `where` begins error messages. In a `text` labels are integers where all of them are written as such.
    """

    def __init__(self, where: str, separator: str | None, *, text: bool) -> None:
        self._where, self._separator, self._text = where, separator, text
        self._multi: bool | None = None
        self._numbers: dict[int | str, int] = {}
        self._labels, self._ends = array("q"), array("q", [0])

    def add(self, row: int, value: object) -> bool:
        """Take the label, or the list of labels, of one row; False where it has none. Raises UserError."""
        if value is None or (value == "" and self._separator is None):
            return False
        own, multi = self._own(row, value)
        if self._multi not in (None, multi):
            raise UserError(
                f"{self._where}, row {row}: label {value!r}: expected a list of labels in every row, or in none"
            )
        self._multi = multi
        for label in dict.fromkeys(own):
            self._labels.append(self._numbers.setdefault(label, len(self._numbers)))
        self._ends.append(len(self._labels))
        return True

    def finish(self) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64] | None]:
        """Classes, labels and `starts` as a listing has them. Raises UserError."""
        classes, numbers = self._classes()
        labels = numbers[np.frombuffer(self._labels, dtype=np.int64)]
        starts = np.frombuffer(self._ends, dtype=np.int64).copy() if self._multi else None
        return classes, labels, starts

    def _own(self, row: int, value: object) -> tuple[list[int | str], bool]:
        if self._separator is not None:
            if not isinstance(value, str):
                raise UserError(
                    f"{self._where}, row {row}: label {value!r} and label_separator={self._separator!r}: "
                    "expected texts to divide; leave label_separator out"
                )
            parts = (part.strip() for part in value.split(self._separator))
            return [part for part in parts if part], True
        own: list[int | str] = []
        for label in value if isinstance(value, list) else [value]:
            # True is an integer to Python, and none to people.
            if isinstance(label, bool) or not isinstance(label, int | str):
                raise UserError(
                    f"{self._where}, row {row}: label {label!r}: expected an integer, a name, or a list of these"
                )
            own.append(label)
        return own, isinstance(value, list)

    def _classes(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Names of the classes, and the class of each distinct label."""
        labels: Sequence[int | str] = list(self._numbers)
        if not labels:
            raise UserError(f"{self._where} has no labels: expected at least one")
        if self._text and all(_is_integer(str(label)) for label in labels):
            labels = [int(label) for label in labels]
        texts = [label for label in labels if isinstance(label, str)]
        integers = [label for label in labels if isinstance(label, int)]
        if texts and integers:
            raise UserError(f"{self._where} has labels {texts[0]!r} and {integers[0]}: expected all names or integers")
        if texts:
            order = {name: number for number, name in enumerate(sorted(texts))}
            return tuple(order), np.array([order[name] for name in texts], dtype=np.int64)
        for wrong in (min(integers), max(integers)):
            if not 0 <= wrong < MOST_CLASSES:
                raise UserError(f"{self._where} has label {wrong}: expected integers from 0 to below {MOST_CLASSES:,}")
        return tuple(str(label) for label in range(max(integers) + 1)), np.array(integers, dtype=np.int64)


def _is_integer(text: str) -> bool:
    """Whether a text is what Python writes for an integer: `007` is a name."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and (digits == "0" or digits[0] != "0")
