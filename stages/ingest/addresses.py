"""Which tars a pattern means."""

from __future__ import annotations

import fnmatch
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import open_storage
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
        raise UserError(f"source.shards: {twice} is named twice: each tar belongs to one split, once")
    return found


def digest_shards(source: WebDatasetSource) -> str:
    """sha256 over address, size and tag of every tar, in their order. Raises UserError for one that is not there."""

    def state(address: str) -> list[object]:
        storage, key = locate(_NOWHERE, "", address)
        stat = storage.stat(key)
        if stat is None:
            raise UserError(f"source.shards: {address} is not there")
        return [address, stat.bytes, stat.tag]

    with ThreadPoolExecutor(_THREADS) as pool:
        listing = {split: list(pool.map(state, tars)) for split, tars in shard_addresses(source).items()}
    return sha256(canonical_json(listing))


_NOWHERE = open_storage("file:///")
"""Addresses of a source are absolute, so that no storage is theirs by default."""


def _expand(pattern: str) -> list[str]:
    if "://" not in pattern:
        pattern = f"file://{Path(pattern).expanduser().absolute()}"
    if pattern.endswith(".txt"):
        storage, key = locate(_NOWHERE, "", pattern)
        lines = storage.read(key).decode().split()
        return [address for line in lines for address in _expand(line)]
    found = [address for plain in _expand_braces(pattern) for address in _expand_stars(plain)]
    if not found:
        raise UserError(f"source.shards: {pattern} means no tar: expected addresses of .tar files")
    return found


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
    if address.endswith(".tar") and "*" not in address:
        return [address]
    root, _, name = address.rpartition("/")
    if "*" not in address:
        root, name = address.rstrip("/"), "*.tar"
    if "*" in root:
        raise UserError(f"source.shards: {address}: expected `*` after the last slash alone")
    keys = [key for key in open_storage(root).list("") if "/" not in key]
    return [f"{root}/{key}" for key in fnmatch.filter(keys, name)]
