"""Few-shot evaluation beside the bare matrix products that it needs, and beside scikit-learn: `make bench-fewshot`, or
`python -m tests.bench.fewshot [products] [leave-one-out] [--rounds N] [--part P]`.

*products*: 25,000 images of 1,000 classes to draw from, 50,000 to test, 1,024 features, 1, 5, 10 and 25 shots, three
draws, λ fixed; what the stage does with features in memory, beside one Gram matrix, one Cholesky decomposition and
ZᵀY in float64 and one product with the test images in float32 for each draw and number of shots. *leave-one-out*: λ of
30 candidates by leave-one-out, beside scikit-learn's `RidgeClassifierCV` on the same standardised features with the
same column for the bias, which minimises the same squared error; both have to choose the same λ.

Sides take turns in one process, after one small call each. Peaks are those of `tracemalloc`, which numpy reports its
arrays to and LAPACK's work space belongs to, in runs of their own that are not timed. `--part` shrinks classes and
images for a try; `--processor-time` is for busy machines, with `OPENBLAS_NUM_THREADS=1`. The last line is JSON; exits
with 1 where a limit of docs/benchmarks.md is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from stages.classifiers.draws import between
from stages.classifiers.evaluate import Problem, evaluate
from stages.classifiers.least_squares import system
from stages.classifiers.selection import best
from stages.fewshot.config import FewshotConfig
from stages.frozen.store import Images

WIDTH, CLASSES, EACH, TEST = 1024, 1000, 25, 50_000
SHOTS, DRAWS = (1, 5, 10, 25), 3
CANDIDATES = tuple(2.0**power for power in range(-10, 20))
SIZES = {"n5000_c100": (5000, 100), "n5000_c1000": (5000, 1000), "n1000_c100": (1000, 100), "n1000_c1000": (1000, 1000)}
LIMITS = {"n5000_c100": 8.0, "n5000_c1000": 2.0, "n1000_c100": 1.0, "n1000_c1000": 1.0}
MOST_OF_PRODUCTS, MOST_MEMORY = 1.5, 3.0


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=[], help="products, leave-one-out; both if absent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", type=float, default=1.0)
    parser.add_argument("--processor-time", action="store_true", help="count it in place of the clock's")
    options = parser.parse_args()
    global CLOCK
    CLOCK = time.process_time if options.processor_time else time.perf_counter
    what = options.what or ["products", "leave-one-out"]
    print(f"cores: {os.cpu_count()}, load before: {os.getloadavg()[0]:.1f}", flush=True)
    found: dict[str, Any] = {}
    if "products" in what:
        found |= products(options.rounds, options.part)
    if "leave-one-out" in what:
        found["vs_scikit_learn"] = {name: leave_one_out(name, options.rounds) for name in SIZES}
        found["memory_leave_one_out"] = leave_one_out_memory(options.part)
    print(json.dumps(found))
    missed = missed_by(found)
    sys.exit(f"missed: {'; '.join(missed)}" if missed else 0)


def missed_by(found: dict[str, Any]) -> list[str]:
    """What docs/benchmarks.md promises and was not reached."""
    missed = []
    if found.get("vs_bare_products", 0.0) > MOST_OF_PRODUCTS:
        missed.append(f"{found['vs_bare_products']} × the bare products, at most {MOST_OF_PRODUCTS}")
    for name, ratio in found.get("vs_scikit_learn", {}).items():
        if ratio < LIMITS[name]:
            missed.append(f"{ratio} × as fast as scikit-learn at {name}, at least {LIMITS[name]}")
    for name in ("memory_products", "memory_leave_one_out"):
        if found.get(name, 0.0) > MOST_MEMORY:
            missed.append(f"{name}: {found[name]} × the features, at most {MOST_MEMORY}")
    return missed


def images(count: int, classes: int, seed: int, width: int = WIDTH) -> Images:
    """Features as of a network that knows something: a place for each class, and noise."""
    random = np.random.default_rng(seed)
    places = np.random.default_rng(0).normal(size=(classes, width)).astype(np.float32)
    labels = np.arange(count) % classes
    features = random.normal(size=(count, width), scale=3.0).astype(np.float32)
    features += places[labels]
    return Images(features=features, labels=labels)


def products(rounds: int, part: float) -> dict[str, Any]:
    """Ours over the bare products: seconds, and our peak over the features' bytes."""
    classes = int(CLASSES * part)
    pool, test = images(EACH * classes, classes, 1), images(int(TEST * part), classes, 2)
    given = {"data": "d", "from": "m", "shots": SHOTS, "draws": DRAWS}
    config = FewshotConfig.model_validate(given)

    def ours() -> None:
        for scores in evaluate(config, Problem(pool, test, range(classes))).values():
            assert scores.values.shape == (DRAWS, 1)

    def bare() -> None:
        bare_products(pool, test, classes)

    small = FewshotConfig.model_validate({**given, "shots": (1,), "draws": 2})
    evaluate(small, Problem(images(200, 20, 1), images(200, 20, 2), range(20)))
    times = turns({"ours": ours, "bare": bare}, rounds)
    flops = product_flops(classes, len(test.labels))
    seconds = {name: round(statistics.median(own), 2) for name, own in times.items()}
    print(f"products: {seconds} s; bare {flops['float64'] / 1e9:,.0f} GFLOP in float64 and ", end="")
    print(f"{flops['float32'] / 1e9:,.0f} in float32", flush=True)
    memory = peak(ours) + pool.features.nbytes + test.features.nbytes
    return {
        "vs_bare_products": ratio(times, "ours", "bare"),
        "seconds": seconds,
        "gflop": {name: round(value / 1e9) for name, value in flops.items()},
        "memory_products": round(memory / (pool.features.nbytes + test.features.nbytes), 2),
    }


def bare_products(pool: Images, test: Images, classes: int) -> None:
    """Standardisation, argmax and the accuracy left out: on arrays of the right sizes that lie ready."""
    for seed in range(DRAWS):
        permuted = Problem(pool, test, range(classes)).permuted(seed)
        for shots in SHOTS:
            rows = between(permuted, 0, shots)
            z = prepared(pool, rows)
            y = np.full((len(rows), classes), -1.0)
            started = CLOCK()
            dual = len(rows) < WIDTH + 1
            gram = z @ z.T if dual else z.T @ z
            gram[np.diag_indices_from(gram)] += 1024.0
            right = y if dual else z.T @ y
            solved = cho_solve(cho_factor(gram, lower=True, check_finite=False), right, check_finite=False)
            weights = ((z.T @ solved) if dual else solved).astype(np.float32)
            np.matmul(test.features, weights)
            SPENT.append(CLOCK() - started)


CLOCK = time.perf_counter
SPENT: list[float] = []
"""Seconds of the bare products alone, without making their arrays."""


def prepared(pool: Images, rows: Any) -> Any:
    z = pool.features[rows].astype(np.float64)
    z -= z.mean(axis=0)
    return z / z.std(axis=0)


def product_flops(classes: int, test: int) -> dict[str, float]:
    """Of the bare products: a symmetric one counts half."""
    counts = [shots * classes for shots in SHOTS]
    double = 0.0
    for n in counts:
        side, other = min(n, WIDTH), max(n, WIDTH)
        double += side**2 * other + side**3 / 3 + 2 * side**2 * classes + 2 * n * WIDTH * classes
    return {"float64": DRAWS * double, "float32": DRAWS * len(SHOTS) * 2.0 * test * WIDTH * classes}


def leave_one_out(name: str, rounds: int) -> float:
    """How many times as fast as scikit-learn's the choice of λ is, with the fit that follows."""
    from sklearn.linear_model import RidgeClassifierCV

    count, classes = SIZES[name]
    few = images(count, classes, 3)
    order = np.argsort(few.labels, kind="stable")
    features, labels = few.features[order], few.labels[order]
    wide = features.astype(np.float64)
    deviation = wide.std(axis=0) + 1e-5
    design = np.hstack([(wide - wide.mean(axis=0)) / deviation, np.full((count, 1), 100.0)])
    chosen: dict[str, float] = {}

    def ours() -> None:
        own = system(features, labels, classes)
        chosen["ours"] = best(CANDIDATES, -own.leave_one_out(CANDIDATES))
        next(iter(own.path([chosen["ours"]])))

    def peer() -> None:
        chosen["peer"] = float(RidgeClassifierCV(alphas=CANDIDATES, fit_intercept=False).fit(design, labels).alpha_)

    times = turns({"ours": ours, "peer": peer}, rounds)
    assert chosen["ours"] == chosen["peer"], chosen
    seconds = {side: round(statistics.median(own), 2) for side, own in times.items()}
    print(f"leave-one-out, {name}: {seconds} s, λ = {chosen['ours']}", flush=True)
    return ratio(times, "peer", "ours")


def leave_one_out_memory(part: float) -> float:
    """Our peak over the bytes of 25,000 features of 100 classes, these included."""
    few = images(int(25_000 * part), 100, 3)
    order = np.argsort(few.labels, kind="stable")
    features, labels = few.features[order], few.labels[order]
    used = peak(lambda: system(features, labels, 100).leave_one_out(CANDIDATES))
    return round((used + features.nbytes) / features.nbytes, 2)


def turns(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn; each begins a round as often as the other."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in names:
            SPENT.clear()
            started = CLOCK()
            sides[name]()
            times[name].append(sum(SPENT) if SPENT else CLOCK() - started)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 2)


def peak(function: Callable[[], object]) -> int:
    """Bytes that arrays take at most while it runs, beyond those that are there."""
    tracemalloc.start()
    function()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


if __name__ == "__main__":
    main()
