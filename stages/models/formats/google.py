"""Google's npz files of Vision Transformers: those published, newer ones, and big_vision's."""

from __future__ import annotations

from pathlib import Path

from stages.models.formats.assemble import Beside, Found, Overrides, assemble, read_settings, write_settings
from stages.models.formats.google_names import TELLTALES, as_published, rules
from stages.models.formats.network import Network
from stages.models.formats.npz_file import NpzFile, write_npz
from stages.models.formats.rules import outward

USUAL = {"activation": "gelu_tanh", "layer_norm_epsilon": 1e-6}
"""flax's GELU is the form with tanh, and so the paper's; epsilon is flax's."""


def read(path: Path, overrides: Overrides) -> Found:
    """A network from an archive, and from our description beside it, where there is one. Raises UserError."""
    view, optimizer = as_published(NpzFile(path))
    sidecar = path.with_suffix(".json")
    beside = Beside(usual=USUAL).with_own(sidecar.name, read_settings(sidecar))
    return assemble("npz", view, TELLTALES, lambda config, head: rules(config, head=head), beside, overrides, optimizer)


def write(network: Network, path: Path) -> list[Path]:
    """An archive under the published names, and our description beside it; returns the files."""
    write_npz(path, outward(rules(network.config), network.state, network.config.num_heads))
    sidecar = path.with_suffix(".json")
    write_settings(sidecar, network.description())
    return [path, sidecar]
