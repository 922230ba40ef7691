import io

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from stages.data.decode import UnreadableImage, decode_rgb


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixel(data, at=(0, 0)):
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_grey_and_black_and_white_fill_three_channels():
    assert pixel(encode(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert pixel(encode(Image.new("1", (2, 2), 1))) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_cut():
    levels = np.array([[0, 128, 129, 257 * 77, 65535]], dtype=np.uint16)
    image = decode_rgb(encode(Image.fromarray(levels)))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 77, 255]


def test_transparency_shows_white():
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert pixel(encode(half)) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (1, 1), (200, 0, 0, 255)))) == (200, 0, 0)
    assert pixel(encode(Image.new("LA", (1, 1), (0, 0)))) == (255, 255, 255)


def test_palettes_with_and_without_a_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixel(encode(image)) == (10, 20, 30)
    assert pixel(encode(image, transparency=0)) == (255, 255, 255)
    assert pixel(encode(image, transparency=0), at=(1, 0)) == (40, 50, 60)


def test_an_rgb_image_with_a_transparent_colour():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    data = encode(image, transparency=(1, 2, 3))
    assert (pixel(data), pixel(data, at=(1, 0))) == ((255, 255, 255), (9, 9, 9))


def test_cmyk_becomes_rgb():
    red, green, blue = pixel(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red > 240
    assert max(green, blue) < 15


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (16, 8), "black")
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by 90 degrees.
    assert decode_rgb(encode(image, "JPEG", exif=exif)).size == (8, 16)


@pytest.mark.parametrize("spoil", [lambda d: b"", lambda d: b"no image", lambda d: d[: len(d) // 2]])
def test_what_cannot_be_read_is_named(spoil):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = spoil(encode(Image.fromarray(noise), "JPEG"))
    with pytest.raises(UnreadableImage, match="sample 3 of the shard"):
        decode_rgb(data, "sample 3 of the shard")
    assert issubclass(UnreadableImage, UserError)
