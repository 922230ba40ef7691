"""The figures' numbers: rows of tables, files of comma-separated values, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.analyze.measured import Measured
from stages.analyze.weights import Filters

Array = NDArray[np.float64]


def head_rows(found: Mapping[str, Measured], tokens: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Distances and entropies of every head of every layer; layers and heads count from 0."""
    places = [
        (which, layer, head)
        for which, own in found.items()
        for layer in range(own.distance.shape[0])
        for head in range(own.distance.shape[1])
    ]
    distances, entropies = [], []
    for which, layer, head in places:
        where = {"which": which, "layer": layer, "head": head}
        nats = float(found[which].entropy[layer, head])
        distances.append({**where, "distance": _short(found[which].distance[layer, head])})
        entropies.append({**where, "entropy": _short(nats), "of_uniform": _short(part_of_uniform(nats, tokens))})
    return distances, entropies


def layer_rows(found: Mapping[str, Measured], tokens: int) -> list[dict[str, Any]]:
    """One row for each layer of each network: mean, least and greatest of its heads."""
    return [
        {
            "which": which,
            "layer": layer,
            "distance": _short(distance.mean()),
            "least": _short(distance.min()),
            "greatest": _short(distance.max()),
            "entropy": _short(entropy.mean()),
            "of_uniform": _short(part_of_uniform(float(entropy.mean()), tokens)),
        }
        for which, own in found.items()
        for layer, (distance, entropy) in enumerate(zip(own.distance, own.entropy, strict=True))
    ]


def metrics(rows: Sequence[Mapping[str, Any]], images: int) -> dict[str, float]:
    """For example `attention_distance/layer_00`; those of the untrained network begin with `untrained/`."""
    found = {"images": float(images)}
    for row in rows:
        before = "" if row["which"] == "trained" else f"{row['which']}/"
        for name in ("distance", "entropy"):
            found[f"{before}attention_{name}/layer_{row['layer']:02d}"] = row[name]
    return found


def part_of_uniform(nats: float, tokens: int) -> float:
    """An entropy as a part of ln L, that of attention to all L tokens alike. A single token has none: 0."""
    return nats / math.log(tokens) if tokens > 1 else 0.0


def rollout_rows(rollout: Array, places: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each patch of each example. `image` is the image's place in its split."""
    return [
        {"image": place, "row": row, "column": column, "rollout": _short(value)}
        for place, own in zip(places, rollout, strict=True)
        for (row, column), value in np.ndenumerate(own)
    ]


def filter_rows(filters: Filters) -> list[dict[str, Any]]:
    """One row for each principal component, with its elements: in column `red/2/0` that of row 2, column 0."""
    total = np.cumsum(filters.explained)
    channels = ("red", "green", "blue")
    return [
        {
            "component": number,
            "explained": _short(own),
            "explained_so_far": _short(total[number]),
            **{
                f"{channels[channel]}/{row}/{column}": _short(value)
                for (channel, row, column), value in np.ndenumerate(filters.components[number])
            },
        }
        for number, own in enumerate(filters.explained)
    ]


def position_rows(similarity: Array, grid: tuple[int, int]) -> list[dict[str, Any]]:
    """One row for each patch, with its cosine to each patch: in column `2/0` that to row 2, column 0."""
    names = [f"{row}/{column}" for row in range(grid[0]) for column in range(grid[1])]
    return [
        {"patch": name, **dict(zip(names, map(_short, own), strict=True))}
        for name, own in zip(names, similarity, strict=True)
    ]


def about(sentences: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each figure: what it is of, or why it is left out."""
    return [{"figure": figure, "of": sentence} for figure, sentence in sentences.items()]


def _short(value: Any) -> float:
    """Six digits: rounding of sums does not show."""
    return float(f"{float(value):.6g}")
