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

from stages.models.config import AnyModel, ModelConfig
from stages.models.formats import hugging_face
from stages.models.formats import timm as timm_format
from stages.models.formats.files import read_network
from stages.models.formats.known import Format
from stages.models.formats.network import Network
from stages.models.formats.timm_resnets import as_computed, epsilons_told, has_bit, has_stem
from stages.models.resnet_config import BitConfig

IMAGES = 2
TOLERANCE = 3e-5
"""Of logits, or of the greatest of them where that is above 1. Rounding of deep networks in float32 stays below 1e-5;
the other GELU, or another epsilon, makes 1e-4 and more (timm's and transformers' beside the paper's code)."""
RESNET_TOLERANCE = 1e-4
"""The same of networks with a ResNet, whose libraries standardise kernels by another operation."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What came out."""

    compared_with: str
    """Who loaded the file."""
    greatest_difference: float
    """Of any two logits; of features where there are no classes."""
    greatest_logit: float
    tolerance: float = TOLERANCE
    """Of the greatest difference, times the greatest logit where that is above 1."""
    note: str = ""
    """Why the format's own library did not load it."""
    epsilons: str = ""
    """Those of the library's ResNet, where they are not the network's and the format has no place for them. Its logits
    are compared then with what the network gives with these, so that all the rest is held to the same tolerance."""
    epsilon_difference: float | None = None
    """By how much these move any logit from the network's own."""

    @property
    def equal(self) -> bool:
        """Up to rounding."""
        return self.greatest_difference <= self.tolerance * max(1.0, self.greatest_logit)


def check(network: Network, path: Path, format: Format) -> Parity:
    """Compare logits of fixed images: the network's, those of the file read back, and those of the format's library."""
    images, config = _images(network), network.config
    head = _head(network)
    with torch.inference_mode():
        expected = _logits(network.module(), "head", head, images)
        # By its format: that one of our own is read as such, whatever else lies beside it.
        read_back = read_network(path, format=format).network.module()
        differences = [_difference(_logits(read_back, "head", head, images), expected)]
        peer, by, note = _peer(network, path, format)
        told, moved = "", None
        if peer is not None:
            theirs = _logits(peer.eval(), _last(config, format), head, images)
            computed, as_theirs = as_computed(config), expected
            if computed != config:
                as_theirs = _logits(network.module(computed), "head", head, images)
                told, moved = epsilons_told(computed), _difference(theirs, expected)
            differences.append(_difference(theirs, as_theirs))
    return Parity(
        compared_with=by,
        greatest_difference=max(differences),
        greatest_logit=float(expected.abs().max()),
        tolerance=RESNET_TOLERANCE if _has_resnet(config) else TOLERANCE,
        note=note,
        epsilons=told,
        epsilon_difference=moved,
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def _has_resnet(config: AnyModel) -> bool:
    return isinstance(config, BitConfig) or config.stem is not None


def _images(network: Network) -> Tensor:
    shape = (IMAGES, network.config.in_channels, network.resolution, network.resolution)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _head(network: Network) -> Tensor | None:
    """A last layer in place of one that is all zeros, behind which any two networks are alike."""
    weight = network.state.get("head.weight")
    if weight is None or weight.any():
        return None
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.shape[1] ** -0.5


def _last(config: AnyModel, format: Format) -> str:
    """What the format's library calls the last layer."""
    if isinstance(config, BitConfig):
        return "classifier.1" if format == "hf" else "head.fc"
    return "classifier" if format == "hf" else "head"


def _logits(module: nn.Module, last: str, head: Tensor | None, images: Tensor) -> Tensor:
    if head is not None:
        layer: Any = module.get_submodule(last)
        # A convolution of one by one, in some.
        layer.weight = nn.Parameter(head.reshape(layer.weight.shape), requires_grad=False)
    found: Any = module(images)
    return found if isinstance(found, Tensor) else found.logits


def _peer(network: Network, path: Path, format: Format) -> tuple[nn.Module | None, str, str]:
    """The network as the format's own library loads it, who that is, and why there is none."""
    load = _LOADERS.get(format)
    if load is None:
        return None, "our own reader", ""
    if format == "npz" and not _timm_reads(network.config):
        return None, "our own reader", "timm's reader has no place for all of it"
    try:
        peer, by = load(network, path)
    except Exception as error:
        # Whatever ails a library that we do not need is no fault of the file's. One that loads it wrongly shows.
        return None, "our own reader", f"{type(error).__name__}: {error}".splitlines()[0]
    return peer, f"our own reader and {by}", ""


def _timm_reads(config: AnyModel) -> bool:
    """Whether timm's reader of Google's files makes the same network of one."""
    if isinstance(config, BitConfig):
        return has_bit(config)
    return _plain(config) and (config.stem is None or has_stem(config.stem))


def _plain(config: ModelConfig) -> bool:
    return config.head == "linear" and config.position != "none" and config.layer_norm_epsilon == 1e-6


def _transformers(network: Network, path: Path) -> tuple[nn.Module, str]:
    import transformers

    # By its name in the settings: versions after 4 have no hybrids.
    kind = getattr(transformers, hugging_face.architecture(network.config))
    return kind.from_pretrained(path), f"transformers {transformers.__version__}"


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
