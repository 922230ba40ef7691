"""The figures, drawn 900 pixels wide. Equal numbers give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.analyze.weights import Filters

Array = NDArray[np.float64]
DOTS = 150
INCHES = 6.0
"""Of the width: 900 pixels."""
STYLES = {
    # Colours that people with any kind of colour vision tell apart (Okabe and Ito); side by side in each layer.
    "trained": {"color": "#0072B2", "marker": "o", "shift": -0.13},
    "untrained": {"color": "#D55E00", "marker": "s", "shift": 0.13},
}
TILES = 14
"""Position embeddings are shown for at most as many patches along each side."""


def heads_figure(values: Mapping[str, Array], *, uniform: float, axis: str, title: str) -> bytes:
    """A dot for each head of each layer, [layers, heads], and where attention to all alike would lie."""
    figure = _figure(3.9)
    panel = figure.subplots()
    for which, own in values.items():
        style = STYLES[which]
        shift = style["shift"] if len(values) > 1 else 0.0
        layers = np.repeat(np.arange(len(own)), own.shape[1]) + shift
        panel.scatter(layers, own.ravel(), s=22, c=style["color"], marker=style["marker"], alpha=0.75, label=which)
    panel.axhline(uniform, color="0.4", linestyle="--", linewidth=1, label="attention to all alike")
    depth = max(len(own) for own in values.values())
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
    return _png(figure)


def rollout_figure(images: NDArray[np.uint8], rollout: Array, title: str) -> bytes:
    """Each image [n, R, R, 3], and below it what its output is made of, [n, rows, columns], from least to most."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(0.5 + 2 * rows * INCHES / columns)
    panels = figure.subplots(2 * rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
    for number, (image, own) in enumerate(zip(images, rollout, strict=True)):
        row, column = divmod(number, columns)
        whole = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        panels[2 * row, column].imshow(image, extent=whole)
        grey = image.mean(axis=-1)
        below = panels[2 * row + 1, column]
        below.imshow(grey, extent=whole, cmap="gray", vmin=0, vmax=255)
        below.imshow(own, extent=whole, cmap="inferno", interpolation="bilinear", alpha=0.65)
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def filters_figure(filters: Filters) -> bytes:
    """The components as tiles in the order of their part of the variance, which stands above each; grey is zero."""
    count = len(filters.components)
    columns = min(7, count)
    rows = -(-count // columns)
    figure = _figure(0.5 + rows * (INCHES / columns + 0.22))
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
    for panel, own, part in zip(panels.ravel(), filters.components, filters.explained, strict=False):
        panel.imshow(_tile(own), interpolation="nearest")
        panel.set_title(f"{100 * part:.1f} %", fontsize=9, pad=3)
    figure.suptitle(f"principal components of the filters: {filters.what}", fontsize=11)
    return _png(figure)


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
    return _png(figure)


def _tile(component: Array) -> Array:
    """A component [C, S, S] as colours [S, S, 3], zero in the middle; grey where it has no three channels."""
    colours = component if len(component) == 3 else np.repeat(component.mean(axis=0, keepdims=True), 3, axis=0)
    return 0.5 + 0.5 * colours.transpose(1, 2, 0) / max(float(np.abs(colours).max()), 1e-12)


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, height), layout="constrained", dpi=DOTS)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # The version of matplotlib is no part of the picture.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
