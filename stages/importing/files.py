"""The files that an address means, wherever they lie. Light: no torch here."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError
from cluster.storage import NotFound, Storage, open_storage
from stages.context import canonical_json, sha256
from stages.models.formats.known import FILES, SUFFIXES


def locate(address: str) -> tuple[Storage, str, tuple[str, ...]]:
    """The storage that has them, the name of what is meant, and the files that there may be, the needed one first."""
    plain = address.partition("?")[0].rstrip("/")
    root, _, name = plain.rpartition("/")
    if Path(name).suffix in SUFFIXES:
        beside = (f"{Path(name).stem}.json", *(["config.json"] if name.endswith(".safetensors") else []))
        return open_storage(_url(root)), name, (name, *beside)
    if "://" not in address and Path(plain).is_file():
        # Refused by whoever reads it, who says why.
        return open_storage(_url(root)), name, (name,)
    return open_storage(_url(plain)), name, FILES


def _url(root: str) -> str:
    return root if "://" in root else f"file://{root or '/'}"


def digest(address: str) -> str:
    """sha256 over the names, sizes and tags of the files. Raises UserError where there are none."""
    storage, _, names = locate(address)
    found = [(name, stat) for name in names if (stat := storage.stat(name)) is not None]
    if not found or found[0][0] != names[0]:
        raise UserError(f"path={address}: there is no {names[0]}")
    return sha256(canonical_json([[name, stat.bytes, stat.tag] for name, stat in found]))


def fetch(address: str, folder: Path) -> Path:
    """Bring the files into a local folder; returns what is to be read. Raises UserError where they are not there."""
    storage, name, names = locate(address)
    place = folder / (name if names == FILES else "files")
    place.mkdir()
    for file in names:
        try:
            storage.download(file, place / file)
        except NotFound:
            if file == names[0]:
                raise UserError(f"path={address}: there is no {file}") from None
    return place if names == FILES else place / name
