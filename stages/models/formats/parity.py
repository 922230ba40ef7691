"""Whether an exported file gives the logits of the network that it was made of.

It is read back by us, and loaded by the library whose format it is, where that is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.formats import timm as timm_format
from stages.models.formats.files import read_network
from stages.models.formats.known import Format
from stages.models.formats.network import Network

IMAGES = 2
TOLERANCE = 3e-5
"""Of logits, or of the greatest of them where that is above 1. Rounding of deep networks in float32 stays below 1e-5;
the other GELU, or another epsilon, makes 1e-4 and more (timm's and transformers' beside the paper's code)."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What came out."""

    compared_with: str
    """Who loaded the file."""
    greatest_difference: float
    """Of any two logits."""
    greatest_logit: float
    note: str = ""
    """Why the format's own library did not load it."""

    @property
    def equal(self) -> bool:
        """Up to rounding."""
        return self.greatest_difference <= TOLERANCE * max(1.0, self.greatest_logit)


def check(network: Network, path: Path, format: Format) -> Parity:
    """Compare logits of fixed images: the network's, those of the file read back, and those of the format's library."""
    images = _images(network)
    head = _head(network)
    with torch.inference_mode():
        expected = _logits(network.module(), "head", head, images)
        # By its format: that one of our own is read as such, whatever else lies beside it.
        found = [_logits(read_network(path, format=format).network.module(), "head", head, images)]
        peer, by, note = _peer(network, path, format)
        if peer is not None:
            found.append(_logits(peer.eval(), "classifier" if format == "hf" else "head", head, images))
    return Parity(
        compared_with=by,
        greatest_difference=max(float((logits - expected).abs().max()) for logits in found),
        greatest_logit=float(expected.abs().max()),
        note=note,
    )


def _images(network: Network) -> Tensor:
    shape = (IMAGES, network.config.in_channels, network.resolution, network.resolution)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _head(network: Network) -> Tensor | None:
    """A last layer in place of one that is all zeros, behind which any two networks are alike."""
    weight = network.state["head.weight"]
    if weight.any():
        return None
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.shape[1] ** -0.5


def _logits(module: nn.Module, last: str, head: Tensor | None, images: Tensor) -> Tensor:
    if head is not None:
        module.get_submodule(last).weight = nn.Parameter(head, requires_grad=False)
    found: Any = module(images)
    return found if isinstance(found, Tensor) else found.logits


def _peer(network: Network, path: Path, format: Format) -> tuple[nn.Module | None, str, str]:
    """The network as the format's own library loads it, who that is, and why there is none."""
    load = _LOADERS.get(format)
    if load is None:
        return None, "our own reader", ""
    config = network.config
    if format == "npz" and (config.head != "linear" or config.position == "none" or config.layer_norm_epsilon != 1e-6):
        return None, "our own reader", "timm's reader has no place for all of it"
    try:
        peer, by = load(network, path)
    except Exception as error:
        # Whatever ails a library that we do not need is no fault of the file's. One that loads it wrongly shows.
        return None, "our own reader", f"{type(error).__name__}: {error}".splitlines()[0]
    return peer, f"our own reader and {by}", ""


def _transformers(network: Network, path: Path) -> tuple[nn.Module, str]:
    import transformers

    return transformers.ViTForImageClassification.from_pretrained(path), f"transformers {transformers.__version__}"


def _timm(network: Network, path: Path) -> tuple[nn.Module, str]:
    import timm

    return timm.create_model(f"local-dir:{path}", pretrained=True), f"timm {timm.__version__}"


def _timm_of_npz(network: Network, path: Path) -> tuple[nn.Module, str]:
    import timm

    said = timm_format.config(network)
    peer: Any = timm.create_model(said["architecture"], num_classes=network.num_classes, **said["model_args"])
    peer.load_pretrained(str(path))
    return peer, f"timm {timm.__version__}"


_LOADERS: dict[Format, Callable[[Network, Path], tuple[nn.Module, str]]] = {
    "npz": _timm_of_npz,
    "timm": _timm,
    "hf": _transformers,
}
