"""Which strings are keys: the same in every storage, and none that leads out of its root."""

from __future__ import annotations

HIDDEN = ".patchline"
"""First part of the names that a storage keeps for itself, such as temporary files. They are no keys."""


def check_key(key: str) -> str:
    """The key itself. Raises ValueError where it is empty, absolute, or has empty, "." or ".." parts."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or parts[0] == HIDDEN:
        raise ValueError(f"{key!r} is no storage key: expected parts with names, separated by single slashes")
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself. Raises ValueError where no key can start with it."""
    *folders, name = prefix.split("/")
    if folders:
        check_key("/".join(folders))
    if name == HIDDEN:
        raise ValueError(f"{prefix!r} starts no storage key")
    return prefix
