"""The import of a model: read, compared with what a network of its sizes has to have, and committed as ours."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cluster.storage.base import file_digest
from stages.context import Context, Inputs, Result
from stages.importing.config import ImportConfig
from stages.importing.files import fetch
from stages.models.formats.arrays import shown
from stages.models.formats.assemble import Found, Overrides
from stages.models.formats.files import read_network, recognise
from stages.models.store import WEIGHTS, model_bytes


def run(config: ImportConfig, inputs: Inputs, context: Context) -> Result:
    """The model of the file, as pretraining would have left it. Raises UserError for a file that is none."""
    overrides = Overrides(
        num_heads=config.num_heads,
        activation=config.activation,
        layer_norm_epsilon=config.layer_norm_epsilon,
        position=config.position,
        resolution=config.resolution,
        class_names=config.class_names,
        drop=config.drop,
    )
    with tempfile.TemporaryDirectory(prefix="patchline-") as folder:
        path = fetch(config.path, Path(folder))
        found = read_network(path, overrides)
        digest = file_digest(recognise(path)[1]).sha256
        name = path.name
    row = describe(found, name)
    print(f"imported {row['file']}: {row['network']}, {row['arrays']} arrays; {row['notes'] or 'nothing assumed'}")
    network = found.network
    file = context.write(WEIGHTS, model_bytes(network.state))
    classes = network.classes or tuple(map(str, range(network.num_classes)))
    meta = {
        "format": 1,
        "model": network.config.model_dump(mode="json"),
        "resolution": network.resolution,
        "num_classes": network.num_classes,
        "classes": list(classes),
        "class_ids": list(range(network.num_classes)),
        "seed": context.seed,
        # Of the file's bytes: no data set of ours has it.
        "trained_on": digest,
        "update": 0,
        "images_seen": 0,
        "averaged": False,
        "metrics": {},
        "left_out": [],
        **{name: network.about[name] for name in ("resampling",) if name in network.about},
        "imported": {**row, "sha256": digest},
    }
    figures = {"arrays": float(found.arrays), "classes": float(network.num_classes),
               "parameters": float(sum(value.numel() for value in network.state.values()))}  # fmt: skip
    return Result(output=context.commit("model", [file], meta), metrics=figures, tables={"imported": [row]})


def describe(found: Found, name: str) -> dict[str, Any]:
    """What was found, to be shown."""
    network = found.network
    config = network.config
    sizes = f"width {config.width}, depth {config.depth}, MLP {config.mlp_dim}, {config.num_heads} heads"
    return {
        "file": name,
        "format": found.format,
        "arrays": found.arrays,
        "network": f"ViT-{config.variant}/{config.patch_size}" if config.variant else f"{sizes}, patches of "
        f"{config.patch_size}",
        "resolution": network.resolution,
        "classes": network.num_classes,
        "pool": config.pool,
        "head": config.head,
        "activation": config.activation,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "left_out": shown(list(found.left_out)),
        "notes": "; ".join(found.notes),
    }  # fmt: skip
