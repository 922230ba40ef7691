"""What is seen of an image without decoding it."""

import io

import numpy as np
import pytest
from PIL import Image

from stages.ingest.headers import BadImage, read_header


def encoded(form, **options):
    noise = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_prefix_of_an_image_is_bad_with_a_reason(form):
    data = encoded(form)
    assert (read_header(data).width, read_header(data).height) == (17, 13)
    for length in range(len(data)):
        with pytest.raises(BadImage):
            read_header(data[:length])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_rotated_images_are_counted_in_every_format(form):
    exif = Image.Exif()
    assert "rotated" not in read_header(encoded(form)).traits
    exif[0x0112] = 1
    assert "rotated" not in read_header(encoded(form, exif=exif)).traits
    exif[0x0112] = 6
    assert "rotated" in read_header(encoded(form, exif=exif)).traits
