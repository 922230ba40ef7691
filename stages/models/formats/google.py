"""Google's npz files of Vision Transformers, hybrids and BiT: those published, newer ones, and big_vision's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.models.config import AnyModel
from stages.models.formats.assemble import Found, Layout, assemble
from stages.models.formats.beside import Beside, Overrides, read_settings, write_settings
from stages.models.formats.google_names import TELLTALES, as_published, as_published_bit, is_bit, rules
from stages.models.formats.network import Network
from stages.models.formats.npz_file import NpzFile, write_npz
from stages.models.formats.resnet_names import BIT_TELLTALES, bit_rules
from stages.models.formats.rules import Rule, outward
from stages.models.resnet_config import BitConfig

USUAL = {"activation": "gelu_tanh", "layer_norm_epsilon": 1e-6}
"""flax's GELU is the form with tanh, and so the paper's; epsilon is flax's."""
USUAL_STEM = {"epsilon": 1e-5, "epsilon_of": "deviation", "group_norm_epsilon": 1e-6}
"""`vit_jax/models_resnet.py`."""
USUAL_BIT = {"epsilon": 1e-10, "group_norm_epsilon": 1e-5}
"""big_transfer `bit_pytorch/models.py`."""


def rules_of(config: AnyModel, head: bool = True) -> Iterator[Rule]:
    """How the published files have a network of either family."""
    return bit_rules(config, head=head) if isinstance(config, BitConfig) else rules(config, head=head)


def read(path: Path, overrides: Overrides) -> Found:
    """A network from an archive, and from our description beside it, where there is one. Raises UserError."""
    file = NpzFile(path)
    if is_bit(file):
        telltales, (view, optimizer), beside = BIT_TELLTALES, as_published_bit(file), Beside(usual=USUAL_BIT)
    else:
        telltales, (view, optimizer) = TELLTALES, as_published(file)
        beside = Beside(usual=USUAL, usual_stem=USUAL_STEM)
    sidecar = path.with_suffix(".json")
    beside = beside.with_own(sidecar.name, read_settings(sidecar))
    return assemble("npz", view, Layout(telltales=telltales, rules=rules_of), beside, overrides, optimizer)


def write(network: Network, path: Path) -> list[Path]:
    """An archive under the published names, and our description beside it; returns the files."""
    config = network.config
    heads = 1 if isinstance(config, BitConfig) else config.num_heads
    write_npz(path, outward(rules_of(config, bool(network.num_classes)), network.state, heads))
    sidecar = path.with_suffix(".json")
    write_settings(sidecar, network.description())
    return [path, sidecar]
