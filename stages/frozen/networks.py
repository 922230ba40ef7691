"""The features of a trained network, and those of the two baselines beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from stages.models.build import Network, build
from stages.models.initialize import initialize

Extractor = Callable[[Tensor], Tensor]
"""Images [b, 3, R, R] → features [b, D]."""


def extractors(model: Network, kinds: Sequence[str], seed: int, device: str = "cpu") -> dict[str, Extractor]:
    """The trained model's features and those of the baselines, for the `kinds` asked for.

    `features` is what the model's last linear layer is given: after the hidden layer where it has one, pooled
    otherwise, as in big_vision's few-shot evaluation. `untrained` is the same network with the weights that
    pretraining from `seed` began with; `pixels` are the images themselves.
    """
    known: dict[str, Extractor] = {"pixels": lambda images: images.flatten(1)}
    if "features" in kinds:
        known["features"] = model.to(device).features
    if "untrained" in kinds:
        untrained = build(model.config, model.resolution, model.num_classes).eval()
        initialize(untrained, seed)
        known["untrained"] = untrained.to(device).features
    return {kind: known[kind] for kind in kinds}
