"""The three decoders of one JPEG agree."""

import numpy as np
import pytest

from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.jpeg import jpeg_pixels, pixel_damage
from stages.ingest.headers import BadImage, read_header
from tests.unit.stages.data.pictures import for_the_helper, not_for_the_helper, picture, pillow


@pytest.mark.parametrize("shape", [(67, 90), (1, 1), (17, 3)])
def test_libjpegs_own_interface_has_pillows_bytes(shape):
    taken = 0
    for kind, data in for_the_helper(picture(*shape)).items():
        pixels = jpeg_pixels(data)
        assert (pixels is None) == ("progressive" in kind), kind
        if pixels is not None:
            assert np.array_equal(pixels, np.asarray(decode_rgb(data))), kind
            taken += 1
    assert taken > 10


def test_other_images_and_damaged_ones_are_left_to_pillow():
    image = picture(60, 90)
    for kind, data in not_for_the_helper(image).items():
        pixels = jpeg_pixels(data)
        assert pixels is None or np.array_equal(pixels, np.asarray(decode_rgb(data))), kind
    whole = pillow(image)
    damaged = whole[:-300] + bytes(40) + whole[-260:]
    assert jpeg_pixels(whole[:-2]) is None
    assert pixel_damage(damaged) is not None
    assert jpeg_pixels(damaged) is None
    assert decode_rgb(damaged).size == (90, 60)


def test_a_jpeg_of_twelve_bits_is_refused_by_its_bits():
    data = bytearray(pillow(picture(20, 30)))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(UnreadableImage, match=r"photo\.jpg .* a JPEG of 12 bits a channel, of which those of 8"):
        decode_rgb(bytes(data), "photo.jpg")
    with pytest.raises(BadImage, match="a JPEG of 12 bits a channel"):
        read_header(bytes(data))


@pytest.mark.parametrize("form", [{"quality": 90}, {"quality": 90, "progressive": True}])
def test_what_is_decoded_is_the_picture(form):
    """Within 2 grey levels on average, for content that JPEG can hold."""
    smooth = picture(96, 96)[:24]
    found = np.asarray(decode_rgb(pillow(smooth, subsampling=0, **form))).astype(int)
    assert np.abs(found - smooth).mean() < 2
