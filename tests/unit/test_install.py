"""tools/install.sh with a python in name only: which commands it gives, and in which state it leaves the folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
# Stands for python; its .venv, too. Notes each pip install.
case "$*" in
    *"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/uv && [ ! -e no-ensurepip ] \
        && touch .venv/pip ;;
    "-m pip --version") [ -e .venv/pip ] ;;
    *"torch.__version__"*) shift 2; [ "$1" = "$(cat torch-version 2>/dev/null)" ] ;;
    *"-c import sys"*) exit 0 ;;
    *" install "*) echo "${*#*--quiet }" >>installs ;;
esac
"""


@dataclass(frozen=True)
class Checkout:
    """A folder with the script and its constraints."""

    folder: Path

    def install(self) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        environment = {**os.environ, "PYTHON": str(self.folder / "python"), "PATH": path}
        return subprocess.run(
            ["sh", "tools/install.sh"], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    @property
    def installs(self) -> list[str]:
        path = self.folder / "installs"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "tools").mkdir()
    shutil.copy(REPOSITORY / "tools/install.sh", tmp_path / "tools")
    (tmp_path / "constraints.txt").write_text("numpy==2.0.0\ntorch==2.13.0\n")
    (tmp_path / "bin").mkdir()
    # A machine without a driver, whatever this one has.
    for path, text in ((tmp_path / "python", PYTHON), (tmp_path / "bin/nvidia-smi", "#!/bin/sh\nexit 9\n")):
        path.write_text(text)
        path.chmod(0o755)
    return Checkout(tmp_path)


def test_an_environment_whose_creation_failed_is_made_again(checkout: Checkout):
    (checkout.folder / "no-ensurepip").touch()
    failed = checkout.install()
    assert failed.returncode == 2
    assert "install your system's python3-venv" in failed.stderr
    assert (checkout.folder / ".venv/bin/python").exists()
    # As it stands it is of no use: told so again, until the cause is mended.
    assert checkout.install().returncode == 2
    assert checkout.installs == []
    (checkout.folder / "no-ensurepip").unlink()
    (checkout.folder / ".venv/left-over").touch()
    mended = checkout.install()
    assert mended.returncode == 0, mended.stderr
    assert not (checkout.folder / ".venv/left-over").exists()
    assert (checkout.folder / ".venv/installed").exists()


def test_an_environment_that_works_is_kept(checkout: Checkout):
    assert checkout.install().returncode == 0
    (checkout.folder / ".venv/mine").touch()
    assert checkout.install().returncode == 0
    assert (checkout.folder / ".venv/mine").exists()


@pytest.mark.parametrize("found", [None, "2.12.1"])
def test_torch_of_another_version_is_replaced_by_the_build_for_this_machine(checkout: Checkout, found: str | None):
    if found:
        (checkout.folder / "torch-version").write_text(found)
    assert "fetching torch 2.13.0 for CPUs" in checkout.install().stdout
    assert checkout.installs == ["install torch==2.13.0+cpu", "install -c constraints.txt --editable .[local,test]"]


def test_torch_of_the_pinned_version_is_kept(checkout: Checkout):
    (checkout.folder / "torch-version").write_text("2.13.0")
    assert "torch 2.13.0 is there already" in checkout.install().stdout
    assert checkout.installs == ["install -c constraints.txt --editable .[local,test]"]
