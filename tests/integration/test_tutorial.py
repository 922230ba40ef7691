"""The commands of docs/tutorial.md, run as they stand there in one shell of a newcomer, print what it shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.local.processes import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
PAGE = (Path(__file__).parents[2] / "docs/tutorial.md").read_text()
MARK = "@@@"
SECONDS = 1200
"""That all of it may take. It takes three to five minutes on two cores, by what else they do."""
VARYING = (
    (r"\d{8}-\d{6}-[0-9a-f]{4}", "ID"),
    (r"\b\d\d:\d\d:\d\d\b", "TIME"),
    (r"\b(\d+ h |\d+ min )?\d+(\.\d+)? s\b|\b\d+ h \d+ min\b", "DURATION"),
    (r"\d+\.\d+(e-\d+)?", "DECIMAL"),
    (r"[│┃┏┓┗┛┡┩┳╇┻━─┴└┘]", " "),
)
"""What differs from machine to machine; and the lines of tables, which the page leaves out."""


class Command(NamedTuple):
    """A command of the page, with the lines that it shows below it."""

    text: str
    shown: list[str]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def commands() -> Iterator[Command]:
    for text in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            # What ends in a bar or a backslash goes on.
            end = next(number for number, line in enumerate(lines) if not line.endswith(("|", "\\"))) + 1
            yield Command("\n".join(lines[:end]), lines[end:])


def plain(line: str) -> str:
    for pattern, name in VARYING:
        line = re.sub(pattern, name, line)
    return " ".join(line.split())


def matches(shown: str, printed: str) -> bool:
    """Whether a line is the one that the page shows, in which … stands for anything."""
    pattern = ".*".join(map(re.escape, plain(shown).split("…")))
    return re.fullmatch(pattern + ("" if shown.rstrip().endswith("}") else ".*"), plain(printed)) is not None


def lacking(shown: list[str], printed: list[str]) -> list[str]:
    """Lines of the page that were not printed, or not in this order."""
    left = iter(printed)
    return [line for line in shown if not any(matches(line, found) for found in left)]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, list[str]]]:
    """By command, its exit code and what it printed."""
    folder, home = tmp_path_factory.mktemp("newcomer"), tmp_path_factory.mktemp("home")
    (folder / "photos.py").write_text(block("python"))
    script = "\n".join(f"{command.text}\necho; echo {MARK} $?" for command in commands())
    # The page's own port may be somebody else's here.
    script = script.replace("8080", str(free_ports(1)[0]))
    began = time.monotonic()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_", "AWS_"))},
        "HOME": str(home),
        "PATCHLINE_HOME": str(home / "patchline"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "COLUMNS": "160",
    }
    with open(folder / "printed", "wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            shell.wait(SECONDS)
        finally:
            # With what it has left in the background.
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            down = [sys.executable, "-m", "pipeline.cli", "down"]
            subprocess.run(down, cwd=folder, env=environment, check=False, capture_output=True)
    print(f"{time.monotonic() - began:.0f} s")
    pieces = re.split(rf"^{MARK} (\d+)$", (folder / "printed").read_text(), flags=re.MULTILINE)
    return [(int(code), text.splitlines()) for text, code in zip(pieces[::2], pieces[1::2], strict=False)]


def test_each_command_does_what_the_page_shows(printed: list[tuple[int, list[str]]]):
    found = list(commands())
    assert len(found) > 15
    for command, (code, lines) in zip(found, printed, strict=False):
        told = "\n".join(lines)
        assert code == 0, f"{command.text}\n{told}"
        assert lacking(command.shown, lines) == [], f"{command.text}\n{told}"
    assert len(printed) == len(found)
