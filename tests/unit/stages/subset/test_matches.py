import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.subset import matches
from stages.subset.fingerprint import THUMBNAIL, Fingerprints, fingerprints, join, read_fingerprints
from stages.subset.matches import Match, Matcher


def made(looks, thumbnails, exact, flat):
    count = len(looks)
    return Fingerprints(
        exact=np.asarray(exact, dtype=np.uint8)[:, None].repeat(32, axis=1),
        looks=np.asarray(looks, dtype=np.uint64),
        thumbnails=np.asarray(thumbnails, dtype=np.int8),
        flat=np.asarray(flat, dtype=bool),
        small=np.zeros(count, dtype=bool),
    )


def some(random, count, base):
    """Images of few kinds: hashes a few bits away from two of `base`, and of two thumbnails; a few are equal."""
    flips = [sum(1 << int(bit) for bit in random.integers(0, 64, random.integers(0, 5))) for _ in range(count)]
    looks = base[random.integers(0, len(base), count)] ^ np.array([flip % 2**64 for flip in flips], dtype=np.uint64)
    thumbnails = np.random.default_rng(5).integers(-90, 90, (2, THUMBNAIL**2))[random.integers(0, 2, count)]
    return made(looks, thumbnails, random.integers(0, 40, count), random.random(count) < 0.2)


def by_hand(others, images, near):
    """Every image with every other."""
    found = []
    for sample in range(len(images)):
        best = None
        for other in range(len(others)):
            same = images.exact[sample].any() and (images.exact[sample] == others.exact[other]).all()
            distance = bin(int(images.looks[sample]) ^ int(others.looks[other])).count("1")
            shaped = not images.flat[sample] and not others.flat[other]
            alike = (images.thumbnails[sample] == others.thumbnails[other]).all()
            if same or (near is not None and shaped and alike and distance <= near):
                rank = (-1 if same else distance, other)
                best = rank if best is None else min(best, rank)
        if best is not None:
            found.append(Match(sample=sample, other=best[1], distance=None if best[0] < 0 else best[0]))
    return found


@given(st.integers(0, 2**32), st.sampled_from([None, 0, 1, 3, 6, 16]), st.integers(1, 300))
@settings(max_examples=100)
def test_it_finds_what_comparing_everything_finds(seed, near, at_once):
    random = np.random.default_rng(seed)
    base = random.integers(0, 2**64, 2, dtype=np.uint64)
    others, images = some(random, 40, base), some(random, 30, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matches, "_PAIRS", at_once)
        assert Matcher(others, near).matches(images) == by_hand(others, images, near)


def test_fingerprints_survive_storing_and_joining():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4, 40, 50, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    whole = fingerprints([*images, None])
    parts = [fingerprints(images[:2]), fingerprints([]), fingerprints([*images[2:], None])]
    again = read_fingerprints(join(parts).to_bytes())
    for name, value in vars(whole).items():
        assert np.array_equal(value, getattr(again, name))
    assert whole.readable.tolist() == [True] * 4 + [False]
    assert not Matcher(whole, 16).matches(fingerprints([None]))


def test_equal_bytes_of_another_shape_are_another_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    one, turned = Image.fromarray(pixels), Image.fromarray(pixels.reshape(50, 40, 3))
    assert not Matcher(fingerprints([one]), None).matches(fingerprints([turned]))
    assert Matcher(fingerprints([one]), None).matches(fingerprints([one]))
