import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

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


FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_made_upright_in_every_format(form, orientation):
    pixels = np.kron(np.arange(1, 7).reshape(2, 3) * 40, np.ones((16, 16))).astype(np.uint8)
    image, exif = Image.fromarray(pixels).convert("RGB"), Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(upright))


def malformed_exif():
    """Directories with tags that Pillow reads and cannot write again, beside an orientation of 6."""
    for kind, count, value in ((5, 2, b"\xff\xff\xff\xff"), (12, 1, b"abcd"), (2, 9, b"\x00\x00\x00\x08"),
                               (129, 7, b"abcd"), (1, 4, b"\xff\xff\xff\xff"), (10, 300, bytes(4))):  # fmt: skip
        for tag in (0x010F, 0x011A, 0x8769, 0x8825, 0xA005, 0x927C, 0x0132):
            entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHI", tag, kind, count) + value
            yield b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4)
    yield b"Exif\0\0MM\0*\0\0"
    yield b"Exif\0\0XX\0*\0\0\0\x08"


@pytest.mark.filterwarnings("ignore:Tag data larger")
def test_malformed_exif_harms_no_image():
    image = Image.new("RGB", (16, 8), "white")
    for exif in malformed_exif():
        assert decode_rgb(encode(image, "JPEG", exif=exif)).size in ((8, 16), (16, 8))


def test_whatever_a_decoder_raises_is_said_of_the_image(monkeypatch):
    def fails(image):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("stages.data.decode._to_rgb", fails)
    with pytest.raises(UnreadableImage, match=r"x\.jpg .* cannot be decoded: unpack requires"):
        decode_rgb(encode(Image.new("RGB", (2, 2))), "x.jpg")


def test_pixels_are_limited_by_ingestion_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_rgb(encode(Image.new("RGB", (16, 16)))).size == (16, 16)


@pytest.mark.parametrize("spoil", [lambda d: b"", lambda d: b"no image", lambda d: d[: len(d) // 2]])
def test_what_cannot_be_read_is_named(spoil):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = spoil(encode(Image.fromarray(noise), "JPEG"))
    with pytest.raises(UnreadableImage, match="sample 3 of the shard"):
        decode_rgb(data, "sample 3 of the shard")
    assert issubclass(UnreadableImage, UserError)
