"""The native helper gives the plain way's bytes, or leaves an image to it."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.jpeg import jpeg_pixels
from stages.data.native.build import NotBuilt, load
from stages.data.native.helper import Native
from stages.data.transforms import train_crop
from tests.unit.stages.data.pictures import for_the_helper, not_for_the_helper, picture, pillow, segment

SHAPES = [(67, 90), (1, 1), (8, 8), (17, 3), (2, 50), (33, 64), (430, 40)]


@pytest.fixture(scope="module")
def helper():
    try:
        return Native(load())
    except NotBuilt as error:
        pytest.skip(f"no helper: {error}")


def random_boxes(shape, count, seed=0):
    """The whole image and random parts of it, as (top, left, height, width)."""
    found = [(0, 0, *shape)]
    for numbers in np.random.default_rng(seed).random((count, 4)).tolist():
        tall, wide = (1 + int(side * number) for side, number in zip(shape, numbers[:2], strict=True))
        found.append((int((shape[0] - tall + 1) * numbers[2]), int((shape[1] - wide + 1) * numbers[3]), tall, wide))
    return found


def cropped(helper, data, box, flip, size):
    out = np.full((size, size, 3), 77, dtype=np.uint8)
    return out if helper.crop(data, box, flip, out) else None


@pytest.mark.parametrize("shape", SHAPES)
def test_crops_of_jpegs_of_all_kinds_have_the_plain_ways_bytes(helper, shape):
    for kind, data in for_the_helper(picture(*shape)).items():
        plain = np.asarray(decode_rgb(data))
        assert helper.look(data) == shape, kind
        whole = np.zeros((*shape, 3), dtype=np.uint8)
        assert helper.crop(data, (0, 0, *shape), False, whole), kind
        assert np.array_equal(whole, plain), kind
        for number, box in enumerate(random_boxes(shape, 12)):
            # Of a tall one whole rows of blocks lie between those that are needed.
            for size in (1, 9, 16, 71):
                expected = train_crop(plain, np.array(box), number % 2 == 1, size)
                assert np.array_equal(cropped(helper, data, box, number % 2 == 1, size), expected), (kind, box, size)


def test_crops_from_every_row_and_column_on_have_the_plain_ways_bytes(helper):
    """Blocks, and the neighbours that smooth upsampling of colours looks at, begin and end anywhere in them."""
    for kind, data in for_the_helper(picture(75, 83)).items():
        plain = np.asarray(decode_rgb(data))
        for start in range(75):
            for box in ((start, start, min(9, 75 - start), 8), (start, 0, 75 - start, 1 + start)):
                top, left, height, width = box
                out = np.zeros((height, width, 3), dtype=np.uint8)
                assert helper.crop(data, box, False, out), kind
                assert np.array_equal(out, plain[top : top + height, left : left + width]), (kind, box)


def test_other_images_are_left_to_the_plain_way(helper):
    for kind, data in not_for_the_helper(picture(40, 60)).items():
        assert helper.look(data) is None, kind
        assert decode_rgb(data).size in ((60, 40), (40, 60)), kind
    assert [helper.look(data) for data in (b"", b"\xff", b"\xff\xd8\xff", bytes(1000))] == [None] * 4


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=400)
def test_resizing_has_torchs_bytes(helper, data):
    height, width, size = (data.draw(st.integers(1, 300)) for _ in range(3))
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    box = (data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide)), tall, wide)
    out, flip = np.zeros((size, size, 3), dtype=np.uint8), data.draw(st.booleans())
    assert helper.resize(image, box, flip, out)
    assert np.array_equal(out, train_crop(image, np.array(box), flip, size))


@pytest.mark.parametrize("size", [224, 384])
def test_resizing_has_torchs_bytes_from_every_side(helper, size):
    rng = np.random.default_rng(size)
    for side in range(1, 1200):
        image = rng.integers(0, 256, (side, 3, 3), dtype=np.uint8) if side % 2 else rng.integers(
            0, 256, (3, side, 3), dtype=np.uint8
        )  # fmt: skip
        box, out = (0, 0, *image.shape[:2]), np.zeros((size, size, 3), dtype=np.uint8)
        assert helper.resize(image, box, False, out)
        assert np.array_equal(out, train_crop(image, np.array(box), False, size)), side


def test_an_array_that_cannot_be_written_in_place_is_refused(helper):
    data = pillow(picture(20, 20))
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\] in one piece can"):
        helper.crop(data, (0, 0, 20, 20), False, np.zeros((8, 16, 3), dtype=np.uint8)[:, ::2])
    with pytest.raises(ValueError, match="float32"):
        helper.crop(data, (0, 0, 20, 20), False, np.zeros((8, 8, 3), dtype=np.float32))
    assert not helper.resize(picture(20, 20)[:, ::-1], (0, 0, 20, 20), False, np.zeros((8, 8, 3), dtype=np.uint8))
    for box in [(0, 0, 21, 5), (0, 18, 5, 5), (-1, 0, 5, 5), (0, 0, 0, 5)]:
        assert not helper.crop(data, box, False, np.zeros((8, 8, 3), dtype=np.uint8))


def test_what_is_cut_short_is_never_the_helpers(helper):
    """Also where the crop lies above the cut: the plain way refuses the image, so another one stands in for it."""
    for kind, data in for_the_helper(picture(67, 90)).items():
        end = data.rindex(b"\xff\xd9")
        for stop in (end, end - 1, end * 9 // 10, end // 2):
            if stop < end - 1:
                # Where the last rows are there, Pillow does not miss the end.
                with pytest.raises(UnreadableImage):
                    decode_rgb(data[:stop])
            found = helper.look(data[:stop])
            assert found is None or cropped(helper, data[:stop], (0, 0, 5, 5), False, 8) is None, kind


def test_damage_in_the_crop_is_left_to_the_plain_way_and_damage_below_it_changes_nothing(helper):
    image = picture(160, 160)
    data = bytearray(pillow(image, restart_marker_blocks=10))
    at = data.rindex(b"\xff\xd3")
    data[at + 6 : at + 30] = bytes(24)
    damaged = bytes(data)
    plain = np.asarray(decode_rgb(damaged))
    assert helper.look(damaged) == (160, 160)
    assert np.array_equal(
        cropped(helper, damaged, (0, 0, 40, 160), False, 32), train_crop(plain, np.array([0, 0, 40, 160]), False, 32)
    )
    assert cropped(helper, damaged, (0, 0, 160, 160), False, 32) is None


def mutated(data, rng):
    """A JPEG with a few bytes changed, lost, added or cut off, among them markers."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(2, len(changed) if rng.integers(2) else min(len(changed), 700)))
        kind = rng.integers(7)
        if kind == 0:
            changed[place] = rng.integers(256)
        elif kind == 1:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del changed[max(place, len(changed) * 3 // 4) :]
        elif kind == 3:
            changed[place:place] = rng.bytes(int(rng.integers(1, 5)))
        elif kind == 4:
            del changed[place : place + int(rng.integers(1, 20))]
        elif kind == 5:
            changed[place : place + 30] = bytes(30)
        else:
            markers = (0x00, 0xD0, 0xD3, 0xD7, 0xD8, 0xD9, 0xC4, 0xDA, 0xDB, 0xFE, 0xE1, 0xFF, 0x01)
            changed[place : place + 2] = bytes([0xFF, rng.choice(markers)])
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_jpegs_never_differ_from_the_plain_way(helper, seed):
    rng = np.random.default_rng(seed)
    kinds = list(for_the_helper(picture(48, 70)).values())
    same = 0
    for _ in range(1500):
        data = mutated(kinds[rng.integers(len(kinds))], rng)
        shape = helper.look(data)
        if shape is None or shape[0] * shape[1] > 100_000:
            continue
        try:
            plain = np.asarray(decode_rgb(data))
        except UnreadableImage:
            plain = None
        faster = jpeg_pixels(data)
        assert faster is None or (plain is not None and np.array_equal(faster, plain))
        for box in random_boxes(shape, 2, seed):
            found = cropped(helper, data, box, False, 16)
            if found is not None:
                assert plain is not None
                assert plain.shape[:2] == shape
                assert np.array_equal(found, train_crop(plain, np.array(box), False, 16))
                same += 1
    assert same > 300


def test_segments_over_which_pillow_stumbles_are_left_to_it(helper):
    """A resource of Photoshop's without a name, and a resolution without a value, make Pillow refuse the file."""
    plain = pillow(picture(20, 20))
    for data in (
        segment(plain, 0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
        segment(plain, 0xE0, b"JFIF\0"),
        segment(plain, 0xEE, b"Adobe"),
        segment(plain, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        segment(plain, 0xE1, b"Exif\0\0II*\0\xff\0\0\0"),
    ):
        assert helper.look(data) is None
