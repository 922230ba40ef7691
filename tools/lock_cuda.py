"""Writes cluster/deploy/docker/cuda.lock: exact versions and sha256 of what the image with CUDA installs.

`.venv/bin/python tools/lock_cuda.py`, on Linux with the image's Python (3.11). Only metadata is fetched, from PyPI,
whose torch is the one with CUDA; versions are those of constraints.txt where it has them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "cluster/deploy/docker/cuda.lock"
HEADER = """\
# What the image with CUDA installs: exact versions, and the sha256 of the one file of each.
# Made by: .venv/bin/python tools/lock_cuda.py
"""


def wanted() -> list[str]:
    """Requirements of the package itself and of its servers in a cluster."""
    command = [sys.executable, str(ROOT / "tools/requirements.py"), "deploy"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def resolved(requirements: list[str]) -> list[tuple[str, str, str]]:
    """Name, version and sha256 of everything that these need, as pip would install it from PyPI alone."""
    # PyPI's torch needs CUDA's libraries, and these need each other: constraints.txt knows none of them.
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    with tempfile.TemporaryDirectory() as folder:
        names = {"constraints": pinned, "requirements": requirements}
        for name, lines in names.items():
            Path(folder, name).write_text("\n".join(lines) + "\n")
        report = Path(folder, "report.json")
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
            *("--report", str(report), "-c", f"{folder}/constraints", "-r", f"{folder}/requirements"),
        ]
        # A machine's own settings may offer other builds.
        own = {name: value for name, value in os.environ.items() if name not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
        subprocess.run(command, check=True, env={**own, "PIP_CONFIG_FILE": os.devnull})
        found = json.loads(report.read_text())["install"]
    return sorted(
        (
            item["metadata"]["name"],
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in found
    )


def main() -> None:
    lines = [f"{name}=={version} --hash=sha256:{sha256}" for name, version, sha256 in resolved(wanted())]
    TARGET.write_text(HEADER + "\n".join(sorted(lines, key=str.lower)) + "\n")
    print(f"{TARGET.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()
