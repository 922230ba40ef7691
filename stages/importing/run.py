"""The import of a model: read, compared with what a network of its sizes has to have, and committed as ours."""

from __future__ import annotations

from typing import Any

from stages.context import Context, Inputs, Result
from stages.importing.config import ImportConfig
from stages.importing.files import fetch, weights_digest
from stages.models.config import ModelConfig
from stages.models.download import WEIGHTS
from stages.models.formats.arrays import shown
from stages.models.formats.assemble import Found
from stages.models.formats.beside import Overrides
from stages.models.formats.files import read_network, recognise
from stages.models.resnet_config import BitConfig, StemConfig
from stages.models.store import model_bytes
from stages.temporary import temporary_folder


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
    with temporary_folder() as folder:
        path = fetch(config.path, folder)
        found = read_network(path, overrides)
        digest = weights_digest(recognise(path)[1])
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
    return {
        "file": name,
        "format": found.format,
        "arrays": found.arrays,
        "resolution": network.resolution,
        "classes": network.num_classes,
        **(_resnet(network.config) if isinstance(network.config, BitConfig) else _vit(network.config)),
        "left_out": shown(list(found.left_out)),
        "notes": "; ".join(found.notes),
    }


def _vit(config: ModelConfig) -> dict[str, Any]:
    sizes = f"width {config.width}, depth {config.depth}, MLP {config.mlp_dim}, {config.num_heads} heads"
    return {
        "network": config.title if config.variant or config.stem else f"{sizes}, patches of {config.patch_size}",
        "pool": config.pool,
        "head": config.head,
        "activation": config.activation,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        **(_epsilons(config.stem, config.stem.epsilon_of) if config.stem is not None else {}),
    }


def _resnet(config: BitConfig) -> dict[str, Any]:
    return {"network": config.title, "pool": "average", "head": "linear", **_epsilons(config, "variance")}


def _epsilons(config: BitConfig | StemConfig, of: str) -> dict[str, Any]:
    """Those of a ResNet."""
    return {"kernel_epsilon": f"{config.epsilon:g} of the {of}", "group_norm_epsilon": config.group_norm_epsilon}
