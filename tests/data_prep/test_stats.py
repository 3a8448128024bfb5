"""The measurements and the contents of the page about the photos."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_prep.folder import DataError, photo_path
from data_prep.split import split_folder
from data_prep.stats import doubles, look_at, write_page
from data_prep.synthetic import synthesize


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    synthesize(folder, 120, 3, sides=range(64, 81), workers=1)
    split_folder(folder, range(1, 6))
    return folder


def saved(image, path):
    image.save(path, "JPEG", quality=95)
    return path


def noise(side=200):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def test_brightness_goes_from_black_to_white(tmp_path):
    black, grey, white = (
        look_at(saved(Image.new("RGB", (40, 30), (level,) * 3), tmp_path / f"{level}.jpg"))
        for level in (0, 128, 255)
    )
    assert (black.brightness, white.brightness) == (0, 1)
    assert grey.brightness == pytest.approx(0.5, abs=0.01)
    assert (black.width, black.height) == (40, 30)
    assert black.size == (tmp_path / "0.jpg").stat().st_size


def test_a_blurred_photo_is_less_sharp(tmp_path):
    sharp = look_at(saved(noise(), tmp_path / "sharp.jpg"))
    blurred = noise().filter(ImageFilter.GaussianBlur(4))
    assert look_at(saved(blurred, tmp_path / "blurred.jpg")).sharpness < sharp.sharpness / 10


def test_the_same_picture_in_other_bytes_looks_the_same(tmp_path):
    one = look_at(saved(noise(), tmp_path / "one.jpg"))
    with Image.open(tmp_path / "one.jpg") as image:
        image.save(tmp_path / "two.png")
    two = look_at(tmp_path / "two.png")
    assert one.appearance == two.appearance
    assert one.digest != two.digest


@pytest.mark.parametrize("content", [b"", b"no photo"])
def test_a_photo_that_cannot_be_decoded_is_no_photo(tmp_path, content):
    (tmp_path / "broken.jpg").write_bytes(content)
    assert look_at(tmp_path / "broken.jpg") is None
    assert look_at(tmp_path / "absent.jpg") is None


def test_a_damaged_png_does_not_end_the_page(tmp_path):
    content = io.BytesIO()
    noise(300).save(content, "PNG")
    second = content.getvalue().index(b"IDAT", content.getvalue().index(b"IDAT") + 1)
    damaged = bytearray(content.getvalue())
    damaged[second : second + 4] = bytes(4)
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(SyntaxError), Image.open(tmp_path / "damaged.png") as image:
        image.load()
    assert look_at(tmp_path / "damaged.png") is None


def test_doubles_are_counted_and_those_that_leak(drawn):
    split = split_folder(drawn, range(1, 6))
    sides = {photo.side: photo for photo in split.photos}
    look = look_at(photo_path(drawn, sides["train"].id))
    seen = [(sides["train"], look), (sides["test"], look), (sides["test"], look)]
    assert doubles(seen, "digest") == {"photos": 3, "leaked": 2}
    assert doubles(seen[1:], "digest") == {"photos": 2, "leaked": 0}
    assert doubles(seen[:1], "digest") == {"photos": 0, "leaked": 0}


def test_the_page_shows_every_count_and_what_is_wrong(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "data")
    split = split_folder(folder, range(1, 6), method="random")
    photo_path(folder, split.photos[0].id).write_bytes(b"no photo")
    test = next(photo for photo in split.photos[1:] if photo.side == "test")
    train = next(photo for photo in split.photos[1:] if photo.side == "train")
    shutil.copy(photo_path(folder, test.id), photo_path(folder, train.id))
    html = write_page(folder, tmp_path / "stats.html", workers=1).read_text()
    for count in range(1, 6):
        assert f"<h2>Count {count}</h2>" in html
    assert html.count("data:image/jpeg;base64,") == 8 * 7
    assert "equal a training photo byte for byte</span><b>1</b>" in html
    assert 'cannot be decoded, so packing will leave them out</td><td class="number">1</td>' in html
    assert "left out: count out of range" in html
    assert "split at random" in html


def test_the_page_can_be_made_of_a_single_photo(tmp_path):
    content = io.BytesIO()
    noise(64).save(content, "JPEG")
    (tmp_path / "bin-images").mkdir()
    photo_path(tmp_path, "1").write_bytes(content.getvalue())
    (tmp_path / "split.csv").write_text("id,count,group,side\n1,2,g,train\n")
    (tmp_path / "split.json").write_text(
        '{"counts": [2], "method": "group", "test_fraction": 0.2, '
        '"left_out": {"total": 0, "reasons": {}, "photos": {}}}'
    )
    html = write_page(tmp_path, tmp_path / "stats.html", workers=1).read_text()
    assert "1 photos of bins" in html


def test_without_a_split_the_page_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"split. first"):
        write_page(tmp_path, tmp_path / "stats.html")
