"""The figures of a trained network: each as a picture, its numbers beside it."""

from __future__ import annotations

import math
from typing import Any

from cluster.errors import UserError
from stages.analyze import figures, tables
from stages.analyze.config import AnalyzeConfig, no_attention
from stages.analyze.images import Drawn, draw_images
from stages.analyze.measured import Measured, measure
from stages.analyze.measures import patch_distances
from stages.analyze.weights import about_positions, embedding_filters, position_similarity
from stages.context import Context, Inputs, Result
from stages.frozen.threads import torch_threads
from stages.models.build import build
from stages.models.initialize import initialize
from stages.models.store import load_model
from stages.models.vit import VisionTransformer
from stages.rendered import csv_bytes

Files = dict[str, bytes]
Sentences = dict[str, str]
"""What each picture is of, or why it is left out."""


def run(config: AnalyzeConfig, inputs: Inputs, context: Context) -> Result:
    """Measure the network, and the same one untrained, on images of the data set; look at its weights."""
    model = load_model(context.storage, inputs["model"])
    if not isinstance(model, VisionTransformer):
        raise UserError(no_attention(model.config.title, config.model))
    drawn = draw_images(config, inputs["data"], model.resolution, context)
    networks = {"trained": model}
    if config.untrained:
        networks["untrained"] = untrained(model, int(inputs["model"].meta["seed"]))
    found = _measured(config, networks, drawn)
    tokens = model.config.tokens(model.resolution)
    rows = tables.layer_rows(found, tokens)
    pictures, sentences = _figures(config, model, found, drawn)
    shown = {"analysis": rows, "figures": tables.about(sentences)}
    files = [context.write(name, body) for name, body in pictures.items()]
    output = context.commit("analysis", files, {"format": 1, "images": list(drawn.places), **shown})
    return Result(output=output, metrics=tables.metrics(rows, len(drawn.places)), tables=shown)


def untrained(model: VisionTransformer, seed: int) -> VisionTransformer:
    """The same network with the weights that training from `seed` begins with."""
    fresh = build(model.config, model.resolution, model.num_classes)
    assert isinstance(fresh, VisionTransformer)
    initialize(fresh, seed)
    return fresh.eval()


def _measured(config: AnalyzeConfig, networks: dict[str, VisionTransformer], drawn: Drawn) -> dict[str, Measured]:
    settings: dict[str, Any] = {"batch": config.batch, "renormalise": config.renormalise}
    with torch_threads(config.threads):
        return {
            which: measure(network, drawn.images, examples=config.examples if which == "trained" else 0, **settings)
            for which, network in networks.items()
        }


def _figures(
    config: AnalyzeConfig, model: VisionTransformer, found: dict[str, Measured], drawn: Drawn
) -> tuple[Files, Sentences]:
    """Pictures and their numbers by file name, and a sentence about each picture."""
    files, sentences = _heads(config, model, found, len(drawn.places))
    for more, others in (_rollout(model, found["trained"], drawn), _weights(model)):
        files |= more
        sentences |= others
    return files, sentences


def _heads(
    config: AnalyzeConfig, model: VisionTransformer, found: dict[str, Measured], count: int
) -> tuple[Files, Sentences]:
    tokens = model.config.tokens(model.resolution)
    far = float(patch_distances(model.grid, model.config.stride).mean())
    distances, entropies = tables.head_rows(found, tokens)
    title = f"a dot for each head, {model.config.title} at {model.resolution}, mean of {count:,} images"
    files: Files = {
        "attention_distance.png": figures.heads_figure(
            {which: own.distance for which, own in found.items()},
            uniform=far,
            axis="mean attention distance (pixels)",
            title=title,
        ),
        "attention_distance.csv": csv_bytes(distances),
        "attention_entropy.png": figures.heads_figure(
            {which: own.entropy for which, own in found.items()},
            uniform=math.log(tokens),
            axis="entropy of attention (nats)",
            title=title,
        ),
        "attention_entropy.csv": csv_bytes(entropies),
    }
    patches = "renormalised over patches" if config.renormalise else "what goes to the class token counts as none"
    return files, {
        "attention_distance.png": f"{count:,} images, in pixels, {patches}; to all alike it is {far:.2f}",
        "attention_entropy.png": f"{count:,} images, in nats, {tokens:,} tokens; to all alike {math.log(tokens):.3f}",
    }


def _rollout(model: VisionTransformer, found: Measured, drawn: Drawn) -> tuple[Files, Sentences]:
    shown = len(found.rollout)
    row = "the class token's row" if model.config.prefix_tokens else "mean of all patches' rows"
    title = f"attention rollout: {row}, dark to bright"
    files: Files = {
        "rollout.png": figures.rollout_figure(drawn.images[:shown].numpy(), found.rollout, title),
        "rollout.csv": csv_bytes(tables.rollout_rows(found.rollout, drawn.places[:shown])),
    }
    why = "" if model.config.prefix_tokens else ", since there is no class token"
    return files, {"rollout.png": f"{shown} images: {row}{why}"}


def _weights(model: VisionTransformer) -> tuple[Files, Sentences]:
    filters, similarity, about = embedding_filters(model), position_similarity(model), about_positions(model)
    files: Files = {
        "filters.png": figures.filters_figure(filters),
        "filters.csv": csv_bytes(tables.filter_rows(filters)),
    }
    if similarity is not None:
        title = f"similarity of position embeddings ({model.config.position})"
        files["positions.png"] = figures.positions_figure(similarity, model.grid, title)
        files["positions.csv"] = csv_bytes(tables.position_rows(similarity, model.grid))
    return files, {"filters.png": f"{filters.what}: {len(filters.components)} components", "positions.png": about}
