import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from serving.container import preprocess
from serving.container.preprocess import PhotoError, to_pixels


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halves(mode: str = "RGB") -> Image.Image:
    """Left half black, right half white."""
    image = Image.new("L", (80, 40), 0)
    image.paste(255, (40, 0, 80, 40))
    return image.convert(mode)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["JPEG", "PNG"]))
def test_any_shape_becomes_the_square_of_rgb_bytes(width: int, height: int, form: str) -> None:
    pixels = to_pixels(encode(Image.new("RGB", (width, height), (200, 100, 50)), form), 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


def test_a_photo_of_the_right_size_is_decoded_unchanged() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    photo = encode(Image.fromarray(noise), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
    np.testing.assert_array_equal(to_pixels(photo, 32), expected)


def test_nothing_is_cropped_away_at_the_edges() -> None:
    image = Image.new("RGB", (640, 160))
    for corner in ((0, 0), (600, 0), (0, 120), (600, 120)):
        image.paste((255, 0, 0), (*corner, corner[0] + 40, corner[1] + 40))
    pixels = to_pixels(encode(image), 64)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert pixels[row, column, 0] > 200


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_exif_orientation_is_honoured(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise
    pixels = to_pixels(encode(halves(), form, exif=exif), 32)
    assert pixels[2].max() < 30  # the left half is now above
    assert pixels[-3].min() > 225


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
    photo = encode(Image.fromarray(noise), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photo)))
    expected = np.asarray(upright.resize((12, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(to_pixels(photo, 12), expected)


def test_a_bad_exif_tag_does_not_cost_a_good_photo() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "camera"
    good = encode(halves(), "JPEG", exif=exif)
    bad = good.replace(b"\x01\x0f\x00\x02", b"\x01\x09\x00\x02")  # text in a number's tag
    assert bad != good
    np.testing.assert_array_equal(to_pixels(bad, 32), to_pixels(good, 32))


@pytest.mark.parametrize(
    ("mode", "form"),
    [("CMYK", "JPEG"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG")],
)
def test_other_colour_modes_show_the_same_picture(mode: str, form: str) -> None:
    pixels = to_pixels(encode(halves(mode), form), 32)
    assert pixels[:, :12].max() < 30
    assert pixels[:, -12:].min() > 225


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    photo = encode(Image.fromarray(np.full((8, 8), 0x6400, np.uint16)))
    assert set(to_pixels(photo, 8).ravel().tolist()) == {0x64}


def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 999)
    with pytest.raises(PhotoError, match=r"100 × 10 pixels, at most 999 are read"):
        to_pixels(encode(Image.new("L", (100, 10))), 32)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_photo_are_refused(junk: bytes) -> None:
    with pytest.raises(PhotoError, match="not a readable JPEG or PNG"):
        to_pixels(junk, 32)


def test_a_palette_picture_without_its_palette_is_refused() -> None:
    photo = encode(halves("P"), transparency=0)
    start = photo.index(b"PLTE") - 4
    length = int.from_bytes(photo[start : start + 4], "big")
    with pytest.raises(PhotoError, match="not a readable JPEG or PNG"):
        to_pixels(photo[:start] + photo[start + 12 + length :], 32)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(form: str) -> None:
    with pytest.raises(PhotoError, match="not a readable JPEG or PNG"):
        to_pixels(encode(halves(), form), 32)


EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010F] = "camera"
PHOTOS = [
    encode(halves(), "JPEG", exif=EXIF),
    encode(halves(), "JPEG", progressive=True),
    encode(halves("P"), "PNG"),
]


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
@given(st.sampled_from(PHOTOS), st.data())
def test_a_damaged_photo_is_read_or_refused(photo: bytes, data: st.DataObject) -> None:
    damaged = bytearray(photo)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PhotoError):
        assert to_pixels(bytes(damaged), 16).shape == (16, 16, 3)


@given(st.sampled_from(PHOTOS), st.floats(0, 0.8))
def test_a_photo_cut_short_is_refused(photo: bytes, kept: float) -> None:
    with pytest.raises(PhotoError):
        to_pixels(photo[: int(len(photo) * kept)], 16)


def with_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 90, 90)).save(buffer, "JPEG", progressive=True)
    photo, scan, end = buffer.getvalue(), b"\xff\xda", b"\xff\xd9"
    begun = photo.rindex(scan)
    last = photo[begun : photo.rindex(end)]
    return photo[:begun] + last * number + end


def test_a_photo_with_a_thousand_scans_is_refused_before_it_is_decoded() -> None:
    assert to_pixels(with_scans(2), 24).shape == (24, 24, 3)
    with pytest.raises(PhotoError, match="over 100 scans"):
        to_pixels(with_scans(1_000), 24)
