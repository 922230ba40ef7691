"""Time the main job, and print its figures as the README shows them: `python -m tests.bench.demo [WORKFLOW]`.

It starts a local stack of its own, runs `patchline demo` (or submits another workflow that ships) twice, and
prints how long both took, beside the limits of 180 s and 15 s that the demo promises on two cores; then the
few-shot tables, and by how many standard errors of the paired differences the pretrained features beat the
untrained network and raw pixels.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

FIRST_LIMIT, SECOND_LIMIT = 180.0, 15.0
LEAST_ERRORS = 2.0
"""Standard errors by which pretrained features have to beat the untrained network's, at every number of shots."""


def main() -> None:
    """Measure, print, and exit with 1 where a limit is not kept."""
    workflow = sys.argv[1] if len(sys.argv) > 1 else "digits"
    home = tempfile.mkdtemp(prefix="patchline-bench-")
    os.environ["PATCHLINE_HOME"] = home
    command = ["demo"] if workflow == "digits" else ["submit", workflow, "--follow"]
    try:
        started = _timed("up")
        first, second = _timed(*command), _timed(*command)
        status = json.loads(_patchline("status", "--json"))
    finally:
        _patchline("down")
        shutil.rmtree(home, ignore_errors=True)
    print(f"cores: {os.cpu_count()}, load before: {LOAD[0]:.1f}")
    print(f"stack: {started:.0f} s")
    if workflow == "digits":
        print(f"first run, stack included: {started + first:.0f} s, {(started + first) / FIRST_LIMIT:.0%} of its limit")
        print(f"second run: {second:.1f} s, {second / SECOND_LIMIT:.0%} of its limit")
    else:
        print(f"first run: {first / 60:.1f} min; second run: {second:.1f} s")
    for name, stage in status["stages"].items():
        print(f"{name}: {stage['seconds']:.1f} s; " + ", ".join(_figures(stage["metrics"])))
    for name, tables in status["tables"].items():
        if "fewshot" in tables:
            print(f"\n{name}\n\n{_table(tables['fewshot'])}\n\n{_margins(tables['comparison'])}")
    late = workflow == "digits" and (started + first > FIRST_LIMIT or second > SECOND_LIMIT)
    compared = [row for tables in status["tables"].values() for row in tables.get("comparison", [])]
    weak = [r for r in compared if r["baseline"] == "untrained" and (r["standard_errors"] or 0) <= LEAST_ERRORS]
    if late or weak:
        sys.exit(f"beyond the limits: {'too slow; ' * late}features too near the untrained network's: {weak}")


LOAD = os.getloadavg()


def _patchline(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _timed(*words: str) -> float:
    began = time.monotonic()
    _patchline(*words)
    return time.monotonic() - began


def _figures(metrics: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name or name.endswith("accuracy")]


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per set of classes and kind of features, one column per number of shots."""
    shots = sorted({row["shots"] for row in rows})
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cell = f"{100 * row['accuracy']:.1f} ± {100 * row['standard_error']:.1f}"
        lines.setdefault((row["class_set"].replace("_", " "), row["features"]), []).append(cell)
    head = ["classes", "features", *(f"{count}-shot" for count in shots)]
    body = [[*key, *cells] for key, cells in lines.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def _margins(rows: list[dict[str, Any]]) -> str:
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (row for row in rows if row["standard_errors"] is not None):
        key = (row["class_set"], row["baseline"])
        if key not in worst or row["standard_errors"] < worst[key]["standard_errors"]:
            worst[key] = row
    return "\n".join(
        f"{classes}: pretrained minus {baseline}, smallest over shots: {100 * row['difference']:+.1f} points, "
        f"{row['standard_errors']:+.1f} standard errors ({row['shots']} shots)"
        for (classes, baseline), row in worst.items()
    )


if __name__ == "__main__":
    main()
