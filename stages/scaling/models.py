"""The pretrained models: what network each one is, what it has seen, and what that took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from stages.context import Inputs, Output
from stages.models.config import model_config
from stages.models.masked_config import MaskedConfig
from stages.scaling.config import ScalingConfig
from stages.training.memory import Network


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One of them. An imported one has seen nobody knows what: its images and exaFLOPs are None."""

    stage: str
    digest: str
    network: str
    macs: int
    """Multiply-adds of one image's forward pass."""
    train_images: int | None
    """Of the splits that it was trained on, each one once."""
    images_seen: int | None
    exaflops: float | None


def pretrained_models(config: ScalingConfig, inputs: Inputs) -> list[Pretrained]:
    """Those of `pretrained`, in their order. Raises UserError."""
    outputs = [inputs[f"pretrained.{number}"] for number in range(len(config.pretrained))]
    names = network_names([output.meta for output in outputs])
    found: dict[str, Pretrained] = {}
    for stage, output, network in zip(config.pretrained, outputs, names, strict=True):
        own = _pretrained(stage, output, network)
        if own.digest in found:
            raise UserError(
                f"pretrained: '{found[own.digest].stage}' and '{stage}' are the same model: take one of them away"
            )
        found[own.digest] = own
    return list(found.values())


def _pretrained(stage: str, output: Output, name: str) -> Pretrained:
    meta = output.meta
    objective = meta.get("objective")
    network = Network(
        model=model_config(meta["model"]),
        resolution=meta["resolution"],
        num_classes=meta["num_classes"],
        masked=MaskedConfig.model_validate(objective) if objective else None,
    )
    imported = "imported" in meta
    if not imported and "train_images" not in meta:
        raise made_before("pretrained", stage, "on how many images it was trained")
    seen = None if imported else int(meta["images_seen"])
    return Pretrained(
        stage=stage,
        digest=output.digest,
        network=name,
        macs=network.macs,
        train_images=None if imported else int(meta["train_images"]),
        images_seen=seen,
        exaflops=None if seen is None else network.exaflops(seen),
    )


def made_before(field: str, stage: str, what: str) -> UserError:
    """For a model of an earlier version, which does not tell what is needed."""
    return UserError(
        f"{field}: the model from '{stage}' was made by an earlier version and does not tell {what}: "
        f"`patchline retry WORKFLOW --from {stage}` makes it anew"
    )


def network_names(metas: Sequence[dict[str, Any]]) -> list[str]:
    """What to call the network of each model: its title, and the settings in which others of that title differ."""
    models = [model_config(meta["model"]) for meta in metas]
    described = [
        {
            **model.model_dump(mode="json"),
            "resolution": meta["resolution"],
            "objective": meta["objective"]["target"] if meta.get("objective") else "supervised",
            "init_from": "other weights" if "pretrained" in meta else "none",
        }
        for model, meta in zip(models, metas, strict=True)
    ]
    names = []
    for model, own in zip(models, described, strict=True):
        alike = [other for one, other in zip(models, described, strict=True) if one.title == model.title]
        differing = [field for field in own if any(other.get(field) != own[field] for other in alike)]
        names.append(", ".join([model.title, *(f"{field}={own[field]}" for field in differing)]))
    return names
