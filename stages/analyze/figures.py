"""The figures, drawn 900 pixels wide. Equal numbers give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.analyze.weights import Filters
from stages.rendered import png_bytes

Array = NDArray[np.float64]
DOTS = 150
INCHES = 6.0
"""Of the width: 900 pixels."""
STYLES = {
    # Colours that people with any kind of colour vision tell apart (Okabe and Ito); side by side in each layer.
    "trained": {"color": "#0072B2", "marker": "o", "shift": -0.18},
    "untrained": {"color": "#D55E00", "marker": "s", "shift": 0.18},
}
TILES = 14
"""Position embeddings are shown for at most as many patches along each side."""
MARGIN = 0.02
"""Around a picture, as a part of its place."""
TALL = 1.24
"""Height of a filter's place, with the line below it."""
LEAST = 3
"""Few pictures are not made larger than so many beside each other."""


def heads_figure(values: Mapping[str, Array], *, uniform: float, axis: str, title: str) -> bytes:
    """A dot for each head of each layer, [layers, heads], and where attention to all alike would lie."""
    figure = _figure(3.9)
    panel = figure.subplots()
    depth = max(len(own) for own in values.values())
    size = 22 if depth <= 12 else 11
    for which, own in values.items():
        style = STYLES[which]
        shift = style["shift"] if len(values) > 1 else 0.0
        layers = np.repeat(np.arange(len(own)), own.shape[1]) + shift
        panel.scatter(layers, own.ravel(), s=size, c=style["color"], marker=style["marker"], alpha=0.75, label=which)
    panel.axhline(uniform, color="0.4", linestyle="--", linewidth=1, label="attention to all alike")
    step = -(-depth // 16)
    panel.set_xticks(range(0, depth, step))
    panel.set_xlim(-0.6, depth - 0.4)
    # From zero, so that a small difference does not look like a large one.
    panel.set_ylim(0, 1.06 * max(uniform, *(float(own.max()) for own in values.values())))
    panel.set_xlabel("layer")
    panel.set_ylabel(axis)
    panel.set_title(title, fontsize=11)
    panel.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=len(values) + 1, frameon=False)
    return png_bytes(figure)


def rollout_figure(images: NDArray[np.uint8], rollout: Array, title: str) -> bytes:
    """Each image [n, R, R, 3], and below it what its output is made of, [n, rows, columns], from least to most."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, panel = _sheet(columns, 2 * rows, title)
    for number, (image, own) in enumerate(zip(images, rollout, strict=True)):
        row, column = divmod(number, columns)
        panel.imshow(image, extent=_place(column, 2 * row))
        below = _place(column, 2 * row + 1)
        panel.imshow(image.mean(axis=-1), extent=below, cmap="gray", vmin=0, vmax=255)
        panel.imshow(own, extent=below, cmap="inferno", interpolation="bilinear", alpha=0.65)
    _bounds(panel, columns, 2 * rows)
    return png_bytes(figure)


def filters_figure(filters: Filters) -> bytes:
    """The components as tiles in the order of their part of the variance, which stands below each; grey is zero."""
    columns = min(7, len(filters.components))
    rows = -(-len(filters.components) // columns)
    figure, panel = _sheet(columns, rows * TALL, f"principal components of the filters: {filters.what}")
    for number, (own, part) in enumerate(zip(filters.components, filters.explained, strict=True)):
        row, column = divmod(number, columns)
        panel.imshow(_tile(own), extent=_place(column, row * TALL), interpolation="nearest")
        panel.text(column + 0.5, row * TALL + 1.02, f"{100 * part:.1f} %", ha="center", va="top", fontsize=9)
    _bounds(panel, columns, rows * TALL)
    return png_bytes(figure)


def positions_figure(similarity: Array, grid: tuple[int, int], title: str) -> bytes:
    """A tile for each patch: the cosines [N, N] of its position embedding with those of all patches, in their places.

    Of large grids not every patch has a tile; each tile has all patches.
    """
    rows, columns = (np.arange(0, side, -(-side // TILES)) for side in grid)
    gap = max(1, max(grid) // 7)
    tall, wide = grid[0] + gap, grid[1] + gap
    sheet = np.full((len(rows) * tall - gap, len(columns) * wide - gap), np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            own = similarity[row * grid[1] + column].reshape(grid)
            sheet[i * tall : i * tall + grid[0], j * wide : j * wide + grid[1]] = own
    figure = _figure(5.3)
    panel = figure.subplots()
    shown = panel.imshow(sheet, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    panel.set_xticks(np.arange(len(columns)) * wide + (grid[1] - 1) / 2, [str(column) for column in columns])
    panel.set_yticks(np.arange(len(rows)) * tall + (grid[0] - 1) / 2, [str(row) for row in rows])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_xlabel("patch's column")
    panel.set_ylabel("patch's row")
    panel.set_title(title, fontsize=11)
    figure.colorbar(shown, label="cosine similarity", shrink=0.85)
    return png_bytes(figure)


def _tile(component: Array) -> Array:
    """A component [C, S, S] as colours [S, S, 3], zero in the middle; grey where it has no three channels."""
    colours = component if len(component) == 3 else np.repeat(component.mean(axis=0, keepdims=True), 3, axis=0)
    return 0.5 + 0.5 * colours.transpose(1, 2, 0) / max(float(np.abs(colours).max()), 1e-12)


def _sheet(columns: int, rows: float, title: str) -> tuple[Any, Any]:
    """A figure of places of side 1 that pictures are put into."""
    figure = _figure(0.45 + INCHES * rows / max(columns, LEAST))
    figure.suptitle(title, fontsize=11)
    panel = figure.subplots()
    panel.set_axis_off()
    return figure, panel


def _place(column: float, row: float) -> tuple[float, float, float, float]:
    """Where a picture goes, with a margin: left, right, bottom, top."""
    return (column + MARGIN, column + 1 - MARGIN, row + 1 - MARGIN, row + MARGIN)


def _bounds(panel: Any, columns: int, rows: float) -> None:
    """Last of all: each picture that is put into a panel sets its own."""
    panel.set_xlim(0, columns)
    panel.set_ylim(rows, 0)
    panel.set_aspect("equal")


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, height), layout="constrained", dpi=DOTS)
    FigureCanvasAgg(figure)
    return figure
