"""Where the processor's time of a stretch of a loader's work goes, by `perf` (Linux; `apt install linux-perf`)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence

HERTZ = 499
ATTACHED_S = 1.0
PARTS = (
    ("libjpeg", "decoding (libjpeg)"),
    ("libcrypto", "sha256 (libcrypto)"),
    ("[kernel", "kernel: reading, network, files, threads"),
    ("libpython", "Python"),
    ("multiarray", "numpy"),
    ("torch", "torch"),
)
"""Beginnings or parts of libraries' names, and what is done there."""
HELPER = "native helper: cropping, resizing"


def profile(work: Callable[[], int], processes: Sequence[int]) -> None:
    """Print the processors' microseconds for each of the images that `work` counts, by process and kind of work."""
    if shutil.which("perf") is None:
        sys.exit("--profile needs perf: apt install linux-perf")
    with tempfile.TemporaryDirectory(prefix="patchline-perf-") as folder:
        data = f"{folder}/data"
        watched = ",".join(map(str, processes))
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(HERTZ), "-o", data, "-p", watched]
        with subprocess.Popen(command) as perf:
            # It says nowhere that it watches; threads that are made before it does are not seen.
            time.sleep(ATTACHED_S)
            images = work()
            perf.send_signal(signal.SIGINT)
        fields = ["--sort", "comm,dso", "-F", "sample,comm,dso", "-t", ";", "--stdio"]
        report = subprocess.run(
            ["perf", "report", "-q", "-i", data, *fields], check=True, stdout=subprocess.PIPE, text=True
        )
    found = _summed(report.stdout)
    for what, samples in found.most_common():
        print(f"  {samples / HERTZ / images * 1e6:6.1f} µs  {samples / found.total():5.1%}  {what}")


def _summed(report: str) -> Counter[str]:
    """Samples by kind of work."""
    found: Counter[str] = Counter()
    for line in report.splitlines():
        if line.count(";") == 2:
            samples, command, library = (word.strip() for word in line.split(";"))
            found[_kind(command, library)] += int(samples)
    return found


def _kind(command: str, library: str) -> str:
    if command == "weed":
        return "S3 server: kernel" if library.startswith("[kernel") else "S3 server"
    for part, kind in PARTS:
        if part in library:
            return kind
    # The helper's name is the hash of its source.
    return HELPER if len(library) == 64 + len(".so") else "other libraries"
