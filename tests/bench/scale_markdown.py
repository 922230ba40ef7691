"""Figures and tables as docs/scale.md has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def size(number: float) -> str:
    """Bytes as people say them."""
    steps = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next(((unit, name) for unit, name in steps if number >= unit), (1.0, "B"))
    scaled = number / unit
    return f"{scaled:.0f} {name}" if scaled >= 99.5 else f"{scaled:.2g} {name}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, a line for each row."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("  ", " ") for line in lines)
