"""Reading and writing networks in any format: which one a path means, and what does it."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError
from stages.models.formats import google, hugging_face, own, timm
from stages.models.formats.assemble import Found
from stages.models.formats.beside import Overrides, read_settings
from stages.models.formats.known import Format
from stages.models.formats.network import Network
from stages.models.formats.shard_index import INDEX
from stages.models.formats.sharded_file import open_arrays

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")
"""Suffixes of files that run what stands in them when they are read."""


def recognise(path: Path) -> tuple[Format, Path]:
    """The format of a local file or folder, and the file with its arrays. Raises UserError for what is none."""
    if path.is_dir():
        file = next((path / name for name in ("model.safetensors", INDEX) if (path / name).is_file()), None)
        if file is None:
            there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise UserError(
                f"{path.name}: expected model.safetensors in this folder, with a config.json; found {there}"
            )
        return _of_safetensors(path, file), file
    if not path.is_file():
        raise UserError(f"{path}: is not there")
    if path.suffix == ".npz":
        return "npz", path
    if path.suffix == ".safetensors":
        described = read_settings(path.with_suffix(".json"))
        return (
            "safetensors" if described is not None and "model" in described else _of_safetensors(path.parent, path)
        ), path
    pickled = (
        ": reading such a file can run anything: convert it to safetensors first" if path.suffix in PICKLED else ""
    )
    raise UserError(f"{path.name}: expected an .npz, a .safetensors or a folder with model.safetensors{pickled}")


def _of_safetensors(folder: Path, file: Path) -> Format:
    settings = read_settings(folder / "config.json") or {}
    if "architecture" in settings:
        return "timm"
    if "model_type" in settings:
        return "hf"
    begins = ("embeddings.", "vit.embeddings.", "embedder.", "bit.embedder.")
    return "hf" if any(name.startswith(begins) for name in open_arrays(file).shapes) else "timm"


def read_network(path: Path, overrides: Overrides | None = None, *, format: Format | None = None) -> Found:
    """The network of a local file or folder.

    Raises UserError naming the file that is not as it should be, and the array.
    """
    found, file = recognise(path)
    overrides = overrides or Overrides()
    match format or found:
        case "npz":
            return google.read(file, overrides)
        case "timm":
            return timm.read(file.parent, file, overrides)
        case "hf":
            return hugging_face.read(file.parent, file, overrides)
        case "safetensors":
            return own.read(file, overrides)


def write_network(network: Network, format: Format, path: Path) -> list[Path]:
    """Write a network that `places.fitted` has looked at to a file, or to a folder that is there; returns the files."""
    match format:
        case "npz":
            return google.write(network, path)
        case "timm":
            return timm.write(network, path)
        case "hf":
            return hugging_face.write(network, path)
        case "safetensors":
            return own.write(network, path)
