"""The files that an address means, wherever they lie. Light: no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import NotFound, Storage, open_storage
from cluster.storage.base import file_digest
from stages.context import canonical_json, sha256
from stages.models.formats.known import FILES, SETTINGS, SUFFIXES
from stages.models.formats.shard_index import INDEX, MOST_BYTES, read_index


@dataclass(frozen=True, kw_only=True)
class Located:
    """What an address means."""

    storage: Storage
    name: str
    """Of the file or folder."""
    needed: tuple[str, ...]
    """Files that have to be there."""
    optional: tuple[str, ...]
    as_folder: bool


def locate(address: str) -> Located:
    """The files of an address. Raises UserError where a folder's index is none, or names files elsewhere."""
    plain = address.partition("?")[0].rstrip("/")
    root, _, name = plain.rpartition("/")
    if Path(name).suffix in SUFFIXES:
        beside = (f"{Path(name).stem}.json", *(["config.json"] if name.endswith(".safetensors") else []))
        return Located(storage=open_storage(_url(root)), name=name, needed=(name,), optional=beside, as_folder=False)
    if "://" not in address and Path(plain).is_file():
        # Refused by whoever reads it, who says why.
        return Located(storage=open_storage(_url(root)), name=name, needed=(name,), optional=(), as_folder=False)
    storage = open_storage(_url(plain))
    return Located(storage=storage, name=name, needed=_weights(storage), optional=SETTINGS, as_folder=True)


def _url(root: str) -> str:
    return root if "://" in root else f"file://{root or '/'}"


def _weights(storage: Storage) -> tuple[str, ...]:
    """The files of a folder that have the arrays: one, or an index and those that it names."""
    if storage.stat(FILES[0]) is not None:
        return FILES[:1]
    stat = storage.stat(INDEX)
    if stat is None:
        return FILES[:1]
    if stat.bytes > MOST_BYTES:
        raise UserError(f"{INDEX}: it has {stat.bytes:,} bytes, expected up to {MOST_BYTES:,}")
    return (INDEX, *sorted(set(read_index(INDEX, storage.read(INDEX)).values())))


def digest(address: str) -> str:
    """sha256 over the names, sizes and tags of the files. Raises UserError where there are none."""
    found = locate(address)
    stats = [(name, found.storage.stat(name)) for name in (*found.needed, *found.optional)]
    for name, stat in stats[: len(found.needed)]:
        if stat is None:
            raise UserError(f"path={address}: there is no {name}")
    return sha256(canonical_json([[name, stat.bytes, stat.tag] for name, stat in stats if stat is not None]))


def fetch(address: str, folder: Path) -> Path:
    """Bring the files into a local folder; returns what is to be read. Raises UserError where they are not there."""
    found = locate(address)
    place = folder / (found.name if found.as_folder else "files")
    place.mkdir()
    for file in (*found.needed, *found.optional):
        try:
            found.storage.download(file, place / file)
        except NotFound:
            if file in found.needed:
                raise UserError(f"path={address}: there is no {file}") from None
    return place if found.as_folder else place / found.name


def weights_digest(file: Path) -> str:
    """sha256 of a file with arrays; of an index, that of its own and of the files that it names."""
    if file.name != INDEX:
        return file_digest(file).sha256
    names = sorted({INDEX, *read_index(INDEX, file.read_bytes()).values()})
    return sha256(canonical_json([[name, file_digest(file.parent / name).sha256] for name in names]))
