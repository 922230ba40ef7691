"""Our own files: safetensors of any network of ours, and a description beside them."""

from __future__ import annotations

from pathlib import Path

from stages.models.formats.arrays import Part, View
from stages.models.formats.assemble import Found, Layout, assemble
from stages.models.formats.beside import Beside, Overrides, read_settings, write_settings
from stages.models.formats.network import Network
from stages.models.formats.safetensors_file import SafetensorsFile, write_safetensors
from stages.models.formats.safetensors_names import BIT, OWN_BIT, TELLTALES, rules
from stages.models.masked import ARRAYS


def read(path: Path, overrides: Overrides) -> Found:
    """A network from a file whose description is beside it, without what predicts masked patches. Raises UserError."""
    file = SafetensorsFile(path)
    predictions = tuple(name for name in file.shapes if name.startswith(ARRAYS))
    view = View(file, {name: Part(name) for name in file.shapes if name not in predictions})
    sidecar = path.with_suffix(".json")
    beside = Beside(usual={}).with_own(sidecar.name, read_settings(sidecar))
    layout = Layout(telltales=OWN_BIT if BIT.has(view) else TELLTALES, rules=rules)
    return assemble("safetensors", view, layout, beside, overrides, predictions)


def write(network: Network, path: Path) -> list[Path]:
    """A file of arrays, and our description beside it; returns the files."""
    sidecar = path.with_suffix(".json")
    write_safetensors(path, network.state)
    write_settings(sidecar, network.description())
    return [path, sidecar]
