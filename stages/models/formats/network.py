"""A network with its weights, as it is on its way between formats, and what is known of it beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cluster.errors import UserError, check_format
from stages.models import build
from stages.models.config import VARIANTS, AnyModel
from stages.models.masked import ARRAYS

FORMAT = 1
"""Of what we say of a network beside its weights."""
OWN_KEY = "patchline"
"""Under which that stands in the config.json of other programs."""
MOST_PIXELS = 2**14
"""Of a side: a file of settings can claim any."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A Vision Transformer, a hybrid or a ResNet with its weights by our names."""

    config: AnyModel
    resolution: int
    num_classes: int
    """0 of one without a last layer: what it gives are features."""
    state: dict[str, Tensor]
    """What predicts masked patches may be among it (`stages.models.masked`)."""
    classes: tuple[str, ...] | None = None
    """Their names, where they are known."""
    about: dict[str, Any] = field(default_factory=dict)
    """What else travels with it, such as `resampling`, the mode in which position embeddings go to another grid."""

    def module(self, config: AnyModel | None = None) -> build.Network:
        """The network itself, or another one with its weights, in evaluation mode."""
        own = config or self.config
        with torch.device("meta"):
            module = build.build(own, self.resolution, self.num_classes)
        fixed = {name for name, buffer in module.named_buffers() if buffer.is_meta}
        if fixed:
            # They are computed, not stored, so that they cannot come from the file.
            module = build.build(own, self.resolution, self.num_classes)
        state = {name: value for name, value in self.state.items() if not name.startswith(ARRAYS)}
        module.load_state_dict(state, assign=True)
        return module.eval()

    def description(self) -> dict[str, Any]:
        """All that the weights do not say, as JSON."""
        return {
            **self.about,
            "format": FORMAT,
            "model": self.config.model_dump(mode="json"),
            "resolution": self.resolution,
            "num_classes": self.num_classes,
            **({"classes": list(self.classes)} if self.classes is not None else {}),
        }


def blank(config: AnyModel, resolution: int, num_classes: int) -> dict[str, Tensor]:
    """The arrays of a network without their numbers: names and shapes alone, on torch's `meta` device."""
    with torch.device("meta"):
        return build.build(config, resolution, num_classes).state_dict()


def own_description(where: str, found: Any) -> dict[str, Any]:
    """What one of our descriptions says; empty where there is none. Raises UserError where it is none of ours."""
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not isinstance(found.get("model"), Mapping):
        raise UserError(f"{where}: expected a description of a network, with a mapping 'model' in it")
    if not isinstance(found.get("format"), int):
        raise UserError(f"{where}: format: got {found.get('format')!r}, expected {FORMAT}")
    check_format(found["format"], FORMAT, where)
    return dict(found)


def variant_of(sizes: Mapping[str, int]) -> str | None:
    """The paper's name of a network of these sizes, with any number of heads where none is given."""
    for name, shape in VARIANTS.items():
        if all(sizes.get(field, value) == value for field, value in shape.items()):
            return name
    return None
