"""Where the helper cannot be built, the plain way goes on and says so once; many may build it at once."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from stages.data.native import build, helper
from stages.data.native.build import NotBuilt, load
from stages.data.native.check import check
from stages.data.native.helper import Native, native
from tests.bench.soak_watch import open_files


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not looked for the helper yet."""
    helper._native.cache_clear()
    yield monkeypatch
    helper._native.cache_clear()


needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or not os.path.exists("/usr/include/jpeglib.h"), reason="no compiler or no libjpeg here"
)


def test_without_a_compiler_it_is_said_once_what_to_install(fresh, tmp_path, capsys):
    fresh.setenv("PATH", str(tmp_path))
    assert [native(), native()] == [None, None]
    said = capsys.readouterr().out
    assert said.count("apt install gcc libjpeg-dev") == 1
    assert "no C compiler is installed" in said


@needs_compiler
def test_a_build_that_breaks_is_no_failure(fresh, tmp_path, capsys):
    fresh.setattr(build, "_LIBRARIES", ("-lno-such-library",))
    fresh.setattr(build, "default_folder", lambda: tmp_path / "cache")
    assert native() is None
    assert "no-such-library" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "native").iterdir()] == ["build.lock"]


def test_a_compiler_that_writes_nonsense_is_no_failure(fresh, tmp_path, capsys):
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && echo nonsense > "$2"; shift; done\nexit 0\n'
    )
    compiler.chmod(0o755)
    fresh.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fresh.setattr(build, "default_folder", lambda: tmp_path / "cache")
    assert native() is None
    assert "decoded without the native helper" in capsys.readouterr().out


def test_a_folder_that_others_can_write_to_is_not_loaded_from(tmp_path):
    folder = tmp_path / "open" / "native"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o777)
    with pytest.raises(NotBuilt, match="others can write to"):
        load(folder)


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(helper.SWITCH, "0")
    assert native() is None


@needs_compiler
def test_many_processes_build_one_file(tmp_path):
    code = "import sys; from pathlib import Path; from stages.data.native.build import load; load(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "own" / "native")]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    made = sorted(path.suffix for path in (tmp_path / "own" / "native").iterdir())
    assert made == [".lock", ".so"]
    check(Native(load(tmp_path / "own" / "native")))


@needs_compiler
@pytest.mark.parametrize("libraries", [build._LIBRARIES, ("-lno-such-library",)])
def test_building_leaves_no_file_open(tmp_path, monkeypatch, libraries):
    monkeypatch.setattr(build, "_LIBRARIES", libraries)
    before = open_files()
    with suppress(NotBuilt):
        load(tmp_path / "own" / "native")
    assert [path for path in open_files() if path not in before] == []


@needs_compiler
def test_the_scalar_code_gives_the_same_bytes(tmp_path, monkeypatch):
    """That of CPUs without AVX2."""
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-DPATCHLINE_SCALAR"))
    check(Native(load(tmp_path / "own" / "native")))


@needs_compiler
def test_a_helper_with_other_pixels_is_not_used(tmp_path, monkeypatch):
    """As where torch resizes in another way."""
    monkeypatch.setattr("stages.data.native.check.train_crop", lambda image, box, flip, size: image[:size, :size] * 0)
    with pytest.raises(NotBuilt, match="not those of Pillow and torch"):
        check(Native(load(tmp_path / "own" / "native")))
