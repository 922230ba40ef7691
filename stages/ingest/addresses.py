"""Which tars a pattern means."""

from __future__ import annotations

import fnmatch
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import NotFound, open_storage
from stages.context import canonical_json, sha256
from stages.data.cache import locate
from stages.ingest.config import WebDatasetSource

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_THREADS = 32
"""Questions for tags that are under way at once."""


def shard_addresses(source: WebDatasetSource) -> dict[str, list[str]]:
    """The tars of each split. Raises UserError where a pattern means none."""
    found = {}
    for split, patterns in source.shards.items():
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        found[split] = [address for pattern in given for address in _expand(pattern)]
    repeated = [address for split in found.values() for address in split]
    if len(set(repeated)) < len(repeated):
        twice = next(address for address in repeated if repeated.count(address) > 1)
        raise UserError(f"source.shards: {_path(twice)} is named twice: each tar belongs to one split, once")
    return found


def digest_shards(source: WebDatasetSource) -> str:
    """sha256 over address, size and tag of every tar, in their order. Raises UserError for one that is not there."""

    def state(address: str) -> list[object]:
        storage, key = locate(_NOWHERE, "", address)
        stat = storage.stat(key)
        if stat is None:
            raise UserError(f"source.shards: {_path(address)} is not there")
        # Without the signature of a signed address, which is another one every time.
        return [_path(address), stat.bytes, stat.tag]

    with ThreadPoolExecutor(_THREADS) as pool:
        listing = {split: list(pool.map(state, tars)) for split, tars in shard_addresses(source).items()}
    return sha256(canonical_json(listing))


_NOWHERE = open_storage("file:///")
"""Addresses of a source are absolute, so that no storage is theirs by default."""


def _path(address: str) -> str:
    """An address without its query, which may be a signature: only those on the web have one."""
    return address.partition("?")[0] if address.startswith(("https://", "http://")) else address


def _expand(pattern: str) -> list[str]:
    if "://" not in pattern:
        pattern = f"file://{Path(pattern).expanduser().absolute()}"
    if _path(pattern).endswith(".txt"):
        return _listed(pattern)
    found = [address for plain in _expand_braces(pattern) for address in _expand_stars(plain)]
    if not found:
        raise UserError(f"source.shards: {_path(pattern)} means no tar: expected addresses of .tar files")
    return found


def _listed(address: str) -> list[str]:
    """The tars of a list, one address or pattern in each line; relative ones are meant of the list's folder."""
    storage, key = locate(_NOWHERE, "", address)
    try:
        lines = storage.read(key).decode().splitlines()
    except NotFound:
        raise UserError(f"source.shards: the list {_path(address)} is not there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"source.shards: the list {_path(address)} is no text in UTF-8: {error}") from error
    folder = _path(address).rpartition("/")[0]
    named = [line.strip() for line in lines if line.strip()]
    absolute = [line if "://" in line or line.startswith(("/", "~")) else f"{folder}/{line}" for line in named]
    return [tar for line in absolute for tar in _expand(line)]


def _expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}` and `a-{x,y}` written out, as shells and WebDataset do."""
    parts = _BRACES.split(pattern)
    choices = [[text] if number % 2 == 0 else _choices(text) for number, text in enumerate(parts)]
    return ["".join(words) for words in itertools.product(*choices)]


def _choices(text: str) -> list[str]:
    if (match := _RANGE.fullmatch(text)) is None:
        return text.split(",")
    first, last = match.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _expand_stars(address: str) -> list[str]:
    """A folder's tars, or those that match `*`, sorted."""
    if _path(address).endswith(".tar") and "*" not in _path(address):
        return [address]
    root, _, name = address.rpartition("/")
    if "*" not in address:
        root, name = address.rstrip("/"), "*.tar"
    if "*" in root:
        raise UserError(f"source.shards: {address}: expected `*` after the last slash alone")
    keys = [key for key in open_storage(root).list("") if "/" not in key]
    return [f"{root}/{key}" for key in fnmatch.filter(keys, name)]
