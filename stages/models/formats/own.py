"""Our own files: safetensors of any network of ours, and a description beside them."""

from __future__ import annotations

from pathlib import Path

from stages.models.formats.arrays import Part, View
from stages.models.formats.assemble import Beside, Found, Overrides, assemble, read_settings, write_settings
from stages.models.formats.network import Network
from stages.models.formats.safetensors_file import SafetensorsFile, write_safetensors
from stages.models.formats.safetensors_names import TELLTALES, rules


def read(path: Path, overrides: Overrides) -> Found:
    """A network from a file whose description is beside it. Raises UserError."""
    file = SafetensorsFile(path)
    view = View(file, {name: Part(name) for name in file.shapes})
    sidecar = path.with_suffix(".json")
    beside = Beside(usual={}).with_own(sidecar.name, read_settings(sidecar))
    return assemble("safetensors", view, TELLTALES, lambda config, head: rules(config, head=head), beside, overrides)


def write(network: Network, path: Path) -> list[Path]:
    """A file of arrays, and our description beside it; returns the files."""
    sidecar = path.with_suffix(".json")
    write_safetensors(path, network.state)
    write_settings(sidecar, network.description())
    return [path, sidecar]
