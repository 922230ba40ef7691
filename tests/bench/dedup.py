"""How well near copies are found, and how often different pictures are taken for copies: `make bench-dedup`, or
`python -m tests.bench.dedup`.

Originals are 256 × 256 crops of the photographs that scikit-learn ships, far apart from each other, its
handwritten digits, and Fashion-MNIST's test images where they are installed (Debian's
`dataset-fashion-mnist`). *Recall* is the part of the originals that are found from a copy: encoded as JPEG
of quality 50, made half as large, made 20 % brighter, or all of that. *False* is the part of images that are
taken for one of the others though they are not: a crop for another, a digit for another, one of 20,000 of
Fashion-MNIST's training images for a test image (some of which are copies, as far as the eye can tell).
Then the time to compare a million images with 100,000. The last line is JSON.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from stages.subset import matches
from stages.subset.config import DEFAULT_NEAR
from stages.subset.fingerprint import Fingerprints, fingerprints
from stages.subset.matches import Matcher

FASHION = Path("/usr/share/datasets/fashion-mnist")
DISTANCES = (0, 2, 4, 6, 8)
SOME = 20_000
"""Of Fashion-MNIST's training images that are compared."""


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.2)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": jpeg,
    "half": half,
    "brighter": brighter,
    "all": lambda image: jpeg(half(brighter(image))),
}


def main() -> None:
    """Print both tables, and the default's figures as JSON; exit with 1 where a copy or a difference is missed."""
    sets = {"photographs": photographs(), "digits": digits()}
    training: list[Image.Image] = []
    if FASHION.exists():
        sets["fashion"], training = fashion()
    found: dict[str, dict[str, float]] = {}
    prints = {name: fingerprints(images) for name, images in sets.items()}
    copies = {
        (name, how): fingerprints([copy(image) for image in images])
        for name, images in sets.items()
        for how, copy in COPIES.items()
    }
    train = fingerprints(training)
    for least, of_small in ((0.0, 0.0), (matches.LEAST_LIKENESS, matches.LEAST_LIKENESS_OF_SMALL)):
        matches.LEAST_LIKENESS, matches.LEAST_LIKENESS_OF_SMALL = least, of_small
        print(f"\nlikeness of thumbnails at least {least}, of small images {of_small}")
        print(" " * 24 + "".join(f"{distance:>8}" for distance in DISTANCES))
        for name, own in prints.items():
            for how in COPIES:
                row = [recall(own, copies[name, how], near) for near in DISTANCES]
                found[f"{name} {how}"] = dict(zip(map(str, DISTANCES), row, strict=True))
                print(f"{name + ' ' + how:>24}" + "".join(f"{value:>8.3f}" for value in row))
            row = [others(own, near) for near in DISTANCES]
            print(f"{name + ' false':>24}" + "".join(f"{value:>8.4f}" for value in row))
            found[f"{name} false"] = dict(zip(map(str, DISTANCES), row, strict=True))
        if training:
            row = [len(Matcher(prints["fashion"], near).matches(train)) / len(train) for near in DISTANCES]
            print(f"{'fashion train in test':>24}" + "".join(f"{value:>8.4f}" for value in row))
    result = {
        "near": DEFAULT_NEAR,
        "recall": {name: round(row[str(DEFAULT_NEAR)], 4) for name, row in found.items() if "false" not in name},
        "false": {name: round(row[str(DEFAULT_NEAR)], 5) for name, row in found.items() if "false" in name},
        "seconds_per_million_in_100_000": round(speed(), 1),
    }
    print(json.dumps(result))
    photos = [value for name, value in result["recall"].items() if name.startswith("photographs")]
    sys.exit(0 if min(photos) >= 0.9 and result["false"]["photographs false"] == 0 else 1)


def recall(originals: Fingerprints, copies: Fingerprints, near: int) -> float:
    """The part of the copies that are found to be some original's."""
    return len(Matcher(originals, near).matches(copies)) / len(copies)


def others(images: Fingerprints, near: int) -> float:
    """The part of the images that are found among the others: odd ones among even ones."""
    even, odd = (Fingerprints(**{key: value[start::2] for key, value in vars(images).items()}) for start in (0, 1))
    return len(Matcher(even, near).matches(odd)) / len(odd)


def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(np.asarray(image)) for image in load_sample_images().images]
    places = [(left, top) for left in range(0, 500, 96) for top in range(0, 300, 96)]
    return [
        image.crop((left, top, left + 128, top + 128)).resize((256, 256)) for image in whole for left, top in places
    ]


def digits() -> list[Image.Image]:
    from sklearn.datasets import load_digits

    pixels = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    return [Image.fromarray((image * 15).astype(np.uint8)).convert("RGB") for image in pixels]


def fashion() -> tuple[list[Image.Image], list[Image.Image]]:
    from stages.ingest.sources.idx import Idx

    source = Idx(str(FASHION))
    listing = source.listing()
    images = [Image.open(io.BytesIO(raw.data)).convert("RGB") for raw in source.read(listing.references)]
    test = listing.splits == max(listing.splits)
    training = [image for image, own in zip(images, test, strict=True) if not own]
    return [image for image, own in zip(images, test, strict=True) if own], training[:SOME]


def speed() -> float:
    """Seconds to compare a million images with 100,000, by random fingerprints."""
    random = np.random.default_rng(0)

    def made(count: int) -> Fingerprints:
        looks: NDArray[np.uint64] = random.integers(0, 2**64, count, dtype=np.uint64)
        return Fingerprints(
            exact=random.integers(0, 256, (count, 32), dtype=np.uint8),
            looks=looks,
            thumbnails=random.integers(-90, 90, (count, 256), dtype=np.int8),
            flat=np.zeros(count, dtype=bool),
            small=np.zeros(count, dtype=bool),
        )

    matcher, images = Matcher(made(100_000), DEFAULT_NEAR), made(10_000)
    start = time.monotonic()
    for _ in range(10):
        matcher.matches(images)
    return (time.monotonic() - start) * 10


if __name__ == "__main__":
    main()
