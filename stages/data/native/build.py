"""Compiles the native helper where there is a C compiler, once for each machine, user and version."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from stages.data.cache import default_folder

_HERE = Path(__file__).parent
_SOURCES = ("native.h", "look.c", "resize.c", "crop.c")
# Weights are computed as torch computes them: no product and sum in one rounding. Code of this CPU alone is made, which
# is why the file's name tells CPUs apart.
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fvisibility=hidden", "-shared", "-fPIC")
_LIBRARIES = ("-ljpeg", "-lm")
_SECONDS = 120


class NotBuilt(RuntimeError):
    """There is no helper here; the message says why."""


def load(folder: Path | None = None) -> ctypes.CDLL:
    """The compiled helper, made now where this version of it is not in the folder. Raises NotBuilt.

    Any number of processes may ask at once: one of them compiles, and the file appears by renaming.
    """
    try:
        folder = _private(folder or default_folder().parent / "native")
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise NotBuilt("no C compiler is installed")
        target = folder / f"{_digest(compiler)}.so"
        if not target.exists():
            with open(folder / "build.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.exists():
                    _compile(compiler, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        raise NotBuilt(str(error)) from error


def _private(folder: Path) -> Path:
    """Make a folder that this user alone can write to, since what lies in it is executed. Raises NotBuilt."""
    for each in (folder.parent, folder):
        each.mkdir(parents=True, mode=0o700, exist_ok=True)
        status = each.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise NotBuilt(f"others can write to {each}")
    return folder


def _digest(compiler: str) -> str:
    """Of everything that the compiled file depends on."""
    parts = [(_HERE / name).read_bytes() for name in _SOURCES]
    parts += [" ".join((compiler, *_FLAGS, *_LIBRARIES)).encode(), _run(compiler, "--version").encode()]
    parts += [_jpeg_version(compiler).encode(), _cpu().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _jpeg_version(compiler: str) -> str:
    """That of the installed headers of libjpeg-turbo, as the compiler finds them."""
    program = "#include <stdio.h>\n#include <jpeglib.h>\nLIBJPEG_TURBO_VERSION JPEG_LIB_VERSION\n"
    return _run(compiler, "-E", "-P", "-xc", "-", text=program).strip().rsplit("\n", 1)[-1]


def _cpu() -> str:
    """The instructions that this machine's first CPU has."""
    with open("/proc/cpuinfo") as file:
        lines = {line for line in file if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "".join([platform.machine(), *sorted(lines)])


def _compile(compiler: str, target: Path) -> None:
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(descriptor)
    part = Path(name)
    try:
        sources = [str(_HERE / name) for name in _SOURCES if name.endswith(".c")]
        _run(compiler, *_FLAGS, *sources, "-o", str(part), *_LIBRARIES)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        lines = done.stderr.splitlines() or ["nothing"]
        reason = next((line for line in lines if "error" in line or "cannot find" in line), lines[0])
        raise NotBuilt(f"{command[0]} says: {reason.strip()}")
    return done.stdout
