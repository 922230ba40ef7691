"""`du --under`: the roots below one prefix, each beside its quota. Quotas are reported and enforced by nobody here.

A quota file is YAML, `{anna: 2 TB, ben: 500 GB, default: 1 TB}`, by the roots' folders below the prefix. It is the
object `QUOTAS.yaml` there, or a file of one's own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field

from cluster.errors import UserError
from cluster.sizes import bytes_of
from cluster.storage import NotFound, Storage, open_storage
from pipeline.head import read_head
from pipeline.ids import by_age
from pipeline.space import Amount
from pipeline.yaml_file import read_yaml, unreadable
from stages.config import Config

KEY = "QUOTAS.yaml"
MARKS = ("stages", "workflows", "index")
"""Folders that a root is known by."""
DEEPEST = 3
"""Folders below the prefix that roots are looked for in."""
NEAR = 0.9
"""Share of a quota from which on it is told."""
NEWEST = 8
"""Workflows of a root whose last sign of life is read."""


class Quotas(Config):
    """Bytes that each root may take up, by its folder below the prefix; `default` holds for all others."""

    roots: dict[str, int] = Field(default_factory=dict, description="bytes by folder")
    default: int | None = Field(default=None, description="bytes of a root that is not named; no limit if absent")

    def of(self, folder: str) -> int | None:
        """The quota of a root, in bytes; None where there is none."""
        return self.roots.get(folder, self.default)


@dataclass(frozen=True, kw_only=True)
class RootSpace:
    """A root below the prefix, beside its quota."""

    folder: str
    """Below the prefix; empty for the prefix itself."""
    amount: Amount
    quota: int | None
    active_ms: int | None
    """The newest sign of life of its newest workflows, in milliseconds since 1970, by their drivers' clocks."""
    inside: str | None = None
    """The root that this one lies in, which should not be: bytes count here, and not there."""

    @property
    def share(self) -> float | None:
        """Of its quota; None where there is none."""
        return None if self.quota is None else self.amount.bytes / self.quota

    @property
    def state(self) -> str:
        """`over` its quota, `near` it, or `ok`."""
        share = self.share or 0.0
        return "over" if share > 1 else "near" if share >= NEAR else "ok"


def roots_under(storage: Storage, quotas: Quotas) -> list[RootSpace]:
    """The roots below a prefix, the fullest first; those of the quota file that have no objects yet among them.

    One listing of all that lies below the prefix, which is a request for each 1,000 objects, and a few reads for each
    root.
    """
    amounts = _amounts(storage)
    rows = [
        RootSpace(
            folder=folder,
            amount=amounts.get(folder, Amount()),
            quota=quotas.of(folder),
            active_ms=_active(storage, folder) if folder in amounts else None,
            inside=_innermost(folder.split("/")[:-1], amounts) if folder else None,
        )
        for folder in sorted({*amounts, *quotas.roots})
    ]
    return sorted(rows, key=lambda row: (-(row.share or 0.0), -row.amount.bytes, row.folder))


def read_quotas(storage: Storage, path: Path | None = None) -> Quotas:
    """The quotas of a file, or of the object below the prefix; none where there is neither. Raises UserError."""
    if path is not None:
        try:
            return parse_quotas(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--quotas {path}: cannot be read ({error})") from error
    try:
        return parse_quotas(storage.read(KEY).decode(), f"{storage.url}/{KEY}")
    except NotFound:
        return Quotas()


def parse_quotas(text: str, where: str) -> Quotas:
    """The quotas that a text says. Raises UserError with the name, the value and what was expected."""
    try:
        document = read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(unreadable(str(where), error)) from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise UserError(f"{where}: expected a size for each root's folder, such as {{anna: 2 TB, default: 1 TB}}")
    sizes = {name.strip("/"): bytes_of(str(value), f"{where}: {name}") for name, value in document.items()}
    return Quotas(roots={name: size for name, size in sizes.items() if name != "default"}, default=sizes.get("default"))


def _amounts(storage: Storage) -> dict[str, Amount]:
    """What lies in each root below the prefix. A root is known by the keys of its stages and workflows."""
    roots, others = dict[str, Amount](), dict[str, Amount]()
    for key, size in storage.sizes(""):
        parts, one = key.split("/"), Amount(bytes=size, objects=1)
        depth = next((place for place, part in enumerate(parts[: DEEPEST + 1]) if part in MARKS), None)
        if depth is not None and len(parts) > depth + 2:
            found, folder = roots, "/".join(parts[:depth])
        else:
            found, folder = others, "/".join(parts[:-1][:DEEPEST])
        found[folder] = found.get(folder, Amount()) + one
    for folder, amount in others.items():
        if (root := _innermost(folder.split("/"), roots)) is not None:
            roots[root] += amount
    return roots


def _innermost(parts: list[str], roots: Collection[str]) -> str | None:
    """The innermost root that a folder, by its parts, is or lies in."""
    candidates = ("/".join(parts[:length]) for length in range(len(parts), -1, -1))
    return next((folder for folder in candidates if folder in roots), None)


def _active(storage: Storage, folder: str) -> int | None:
    """When a driver of one of the newest workflows last showed itself."""
    root = open_storage(f"{storage.url}/{folder}" if folder else storage.url)
    names = by_age(root, root.list_folders("workflows/"))[-NEWEST:]
    heads = [found[0] for name in names if (found := read_head(root, f"workflows/{name}")) is not None]
    return max((head.renewed_ms for head in heads), default=None)
