"""How arrays of our networks are laid out in other formats: pure moves of numbers, so that none changes a bit.

Shapes: C channels of an image, D width, H heads, K = D / H, I and O inputs and outputs of a layer, P side of a patch.
A rule's directions work on shapes alone too: with tensors on torch's `meta` device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal[
    "same", "dense", "kernel", "dense_kernel", "dense_convolution", "heads", "heads_bias", "from_heads", "stacked"
]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """One of our arrays, and the arrays of a format that hold the same numbers, in the order in which ours has them."""

    ours: str
    theirs: tuple[str, ...]
    form: Form = "same"


def _dense(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return [ours.T]  # [O, I] → [I, O]


def _kernel(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return [ours.permute(2, 3, 1, 0)]  # [D, C, P, P] → [P, P, C, D]


def _dense_kernel(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return [ours.T[None, None]]  # [O, I] → [1, 1, I, O]


def _dense_convolution(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return [ours[:, :, None, None]]  # [O, I] → [O, I, 1, 1]


def _heads(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return [part.T.reshape(part.shape[1], heads, -1) for part in ours.chunk(count)]  # [n D, D] → n × [D, H, K]


def _heads_bias(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return [part.reshape(heads, -1) for part in ours.chunk(count)]  # [n D] → n × [H, K]


def _from_heads(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return [ours.T.reshape(heads, -1, ours.shape[0])]  # [D, D] → [H, K, D]


def _stacked(ours: Tensor, count: int, heads: int) -> list[Tensor]:
    return list(ours.chunk(count))


_OUTWARD: dict[Form, Callable[[Tensor, int, int], list[Tensor]]] = {
    "same": lambda ours, count, heads: [ours],
    "dense": _dense,
    "kernel": _kernel,
    "dense_kernel": _dense_kernel,
    "dense_convolution": _dense_convolution,
    "heads": _heads,
    "heads_bias": _heads_bias,
    "from_heads": _from_heads,
    "stacked": _stacked,
}
_INWARD: dict[Form, Callable[[Sequence[Tensor]], Tensor]] = {
    "same": lambda theirs: theirs[0],
    "dense": lambda theirs: theirs[0].T,
    "kernel": lambda theirs: theirs[0].permute(3, 2, 0, 1),
    "dense_kernel": lambda theirs: theirs[0][0, 0].T,
    "dense_convolution": lambda theirs: theirs[0][:, :, 0, 0],
    "heads": lambda theirs: torch.cat([part.reshape(part.shape[0], -1).T for part in theirs]),
    "heads_bias": lambda theirs: torch.cat([part.reshape(-1) for part in theirs]),
    "from_heads": lambda theirs: theirs[0].reshape(-1, theirs[0].shape[-1]).T,
    "stacked": lambda theirs: torch.cat(list(theirs)),
}


def outward(rules: Iterable[Rule], state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Our arrays in a format's layout, by its names."""
    found = {}
    for rule in rules:
        parts = _OUTWARD[rule.form](state[rule.ours], len(rule.theirs), heads)
        found |= {name: part.contiguous() for name, part in zip(rule.theirs, parts, strict=True)}
    return found


def inward(rules: Iterable[Rule], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """A format's arrays in our layout, by our names; each of theirs is read once."""
    return {rule.ours: _INWARD[rule.form]([read(name) for name in rule.theirs]).contiguous().clone() for rule in rules}


def shapes(rules: Iterable[Rule], ours: Mapping[str, Tensor], heads: int) -> dict[str, Shape]:
    """What the arrays of a format have to be for a network of ours; its tensors may be on the `meta` device."""
    return {name: tuple(tensor.shape) for name, tensor in outward(rules, ours, heads).items()}
