"""A page in the user's browser, where there is one with a window."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

REMOTE = ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")
"""Variables of a shell on another machine than the one that somebody sits at."""
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
TEXT = ("www-browser", "links", "elinks", "lynx", "w3m", "browsh")
"""Browsers that would take the terminal over."""


def at_a_desktop() -> bool:
    """Whether somebody looks at this output on the desktop of this machine."""
    if not sys.stdout.isatty() or any(os.environ.get(name) for name in REMOTE):
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in DISPLAYS)


def open_page(address: str) -> bool:
    """Open an address in a browser that has a window; returns whether one was found."""
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return False
    if Path(getattr(found, "name", "")).name in TEXT:
        return False
    return found.open(address)
