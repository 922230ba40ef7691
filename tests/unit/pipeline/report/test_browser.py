"""Where `patchline report` opens its page: programs that note what they are given stand for browsers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

REPOSITORY = Path(__file__).parents[4]
DESKTOP = {"DISPLAY": ":77"}
SSH = {"SSH_CONNECTION": "192.0.2.1 5 192.0.2.2 22"}


@pytest.fixture
def environment(finished, tmp_path) -> dict[str, str]:
    """Of a shell without a desktop, whose path has a browser with a window and one without, and nothing else."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("xdg-open", "w3m", "mine"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/opened\n')
        (programs / name).chmod(0o755)
    own = {name: value for name, value in os.environ.items() if name not in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")}
    own = {name: value for name, value in own.items() if not name.startswith("SSH_")}
    places = {"PATCHLINE_ROOT": finished[0].url, "PATCHLINE_HOME": str(tmp_path / "home")}
    return {**own, **places, "PATH": str(programs), "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "report", "--to", "page.html", *words]


def said(words: tuple[str, ...], environment: dict[str, str], folder: Path) -> str:
    """What the command prints in a terminal."""
    child = pexpect.spawn(
        sys.executable,
        command(*words)[1:],
        env=environment,
        cwd=folder,
        encoding="utf-8",
        dimensions=(24, 300),
        timeout=300,
    )
    printed = child.read()
    child.close()
    assert child.exitstatus == 0, printed
    return printed


def opened(folder: Path) -> str:
    """What a browser was given: it is started beside the command."""
    deadline, path = time.monotonic() + 120, folder / "opened"
    while not (path.exists() and path.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.read_text().strip()


@pytest.mark.parametrize(
    ("words", "shell", "program"),
    [
        ((), DESKTOP, "xdg-open"),
        (("--open",), DESKTOP | SSH, "xdg-open"),
        (("--open",), SSH | {"BROWSER": "mine"}, "mine"),
    ],
)
def test_it_is_opened_on_a_desktop_and_where_it_is_asked_for(environment, tmp_path, words, shell, program):
    assert f"{tmp_path}/page.html" in said(words, environment | shell, tmp_path)
    assert opened(tmp_path) == f"{program} file://{tmp_path}/page.html"


@pytest.mark.parametrize(
    ("words", "shell"),
    [
        (("--no-open",), DESKTOP),
        ((), DESKTOP | SSH),
        ((), {}),
        ((), DESKTOP | {"BROWSER": "w3m"}),
        ((), DESKTOP | {"BROWSER": "w3m -T text/html %s"}),
    ],
)
def test_it_is_not_opened_over_ssh_without_a_desktop_by_what_takes_the_terminal_and_where_it_is_not_wanted(
    environment, tmp_path, words, shell
):
    assert said(words, environment | shell, tmp_path).strip() == f"{tmp_path}/page.html"
    time.sleep(0.3)
    assert not (tmp_path / "opened").exists()


def test_it_is_not_opened_where_the_output_is_no_terminal(environment, tmp_path):
    done = subprocess.run(
        command(), env=environment | DESKTOP, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}/page.html\n"
    time.sleep(0.3)
    assert not (tmp_path / "opened").exists()


def test_where_there_is_no_browser_with_a_window_it_is_said_when_one_was_asked_for(environment, tmp_path):
    told = said(("--open",), environment | {"BROWSER": "w3m"}, tmp_path)
    assert "no browser with a window was found to open it: BROWSER names one" in told
    assert not (tmp_path / "opened").exists()
