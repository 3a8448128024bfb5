"""Generated bodies: each gets a right answer or a 4xx that says what to change."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from serving.container.application import MAX_BODY, create_app
from serving.container.artifact import load_model
from tests.support.tiny_model import LABELS, grey_photo, write_tiny_model

MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    model = load_model(write_tiny_model(tmp_path_factory.mktemp("model")))
    return TestClient(create_app(model), raise_server_exceptions=False)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 90 * 257, np.uint16))
    return Image.new("RGB", size, (90, 90, 90)).convert(mode)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header promises so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


SIDES = st.sampled_from([1, 2, 7, 16, 64, 300])


@st.composite
def good_photos(draw: st.DrawFn) -> bytes:
    form = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[form]))
    size = draw(st.tuples(SIDES, SIDES) | st.just((30_000, 1)) | st.just((1, 30_000)))
    exif = Image.Exif()
    exif[0x0112] = draw(st.integers(0, 9))
    options: dict[str, Any] = {"exif": exif}
    if form == "JPEG":
        options |= {"progressive": draw(st.booleans()), "quality": draw(st.integers(1, 100))}
    elif mode == "RGB" and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [picture("RGB", size)]}  # animated
    return encode(picture(mode, size), form, **options)


@st.composite
def damaged_photos(draw: st.DrawFn) -> bytes:
    photo = bytearray(draw(good_photos()))
    for _ in range(draw(st.integers(0, 6))):
        photo[draw(st.integers(0, len(photo) - 1))] = draw(st.integers(0, 255))
    return bytes(photo[: draw(st.integers(0, len(photo)))])


OTHER_FORMATS = st.sampled_from(["GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM"]).map(
    lambda form: encode(picture("RGB", (16, 16)), form)
)
BOMBS = st.sampled_from([(60_000, 60_000), (50_000_001, 1), (2**31 - 1, 2**31 - 1), (0, 0)]).map(
    lambda size: png_claiming(*size)
)
LARGE = st.sampled_from([MAX_BODY + 1, 7_000_000]).map(bytes)
PHOTOS = good_photos() | damaged_photos() | OTHER_FORMATS | BOMBS | st.binary(max_size=2000)
TEXTS = PHOTOS.map(lambda photo: base64.b64encode(photo).decode())
PIXELS = st.integers(-1, 256) | st.floats() | st.none() | st.text(max_size=3)
VALUES = st.recursive(
    TEXTS | PIXELS | st.booleans(),
    lambda within: (
        st.lists(within, max_size=5)
        | st.fixed_dictionaries(
            {"photo": within},
            optional={"record": within | st.fixed_dictionaries({"count": within}), "x": within},
        )
    ),
    max_leaves=15,
)
ARRAYS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), PIXELS).map(
    lambda drawn: [[[drawn[3]] * drawn[2]] * drawn[1]] * drawn[0]
)
DEEP = st.integers(1, 200_000).map(lambda depth: b"[" * depth)
JSON_BODIES = (
    (VALUES | ARRAYS).map(lambda value: json.dumps(value).encode())
    | st.lists(TEXTS, min_size=30, max_size=40).map(lambda texts: json.dumps(texts).encode())
    | DEEP
    | st.binary(max_size=200)
)
PHOTO_TYPES = st.sampled_from(["image/jpeg", "image/png", "application/x-image", "IMAGE/JPEG;a=b"])
OTHER_TYPES = st.sampled_from(["", "text/html", "multipart/form-data", "image/", "application/xml"])
REQUESTS = (
    st.tuples(PHOTO_TYPES, PHOTOS)
    | st.tuples(st.just("application/json"), JSON_BODIES)
    | st.tuples(OTHER_TYPES, PHOTOS)
    | st.tuples(PHOTO_TYPES | st.just("application/json"), LARGE)
)
RECORDS = st.none() | st.integers(-1, 9).map(str) | st.text(max_size=5)
ACCEPTS = st.sampled_from(["*/*", "application/json", "text/csv", "video/mp4", "", ";;,"])


def check(client: TestClient, request: tuple[str, bytes], record: str | None, accept: str) -> int:
    content_type, body = request
    response = client.post(
        "/invocations",
        content=body,
        params={} if record is None else {"record": record},
        headers={"content-type": content_type, "accept": accept},
    )
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    if response.status_code != 200:
        assert list(response.json()) == ["error"]
        assert response.json()["error"]
        assert "\n" not in response.text
        assert "Traceback" not in response.text
    elif response.headers["content-type"] == "application/json":
        found = response.json()
        for answer in found if isinstance(found, list) else [found]:
            assert str(answer["count"]) in LABELS
            assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    return response.status_code


def check_many(client: TestClient, number: int) -> None:
    @settings(
        max_examples=number,
        deadline=60_000,  # milliseconds; SageMaker's limit
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(REQUESTS, RECORDS, ACCEPTS)
    def every_request_is_answered(
        request: tuple[str, bytes], record: str | None, accept: str
    ) -> None:
        check(client, request, record, accept)
        assert client.get("/ping").status_code == 200

    every_request_is_answered()
    response = client.post(
        "/invocations", content=grey_photo(3), headers={"content-type": "image/jpeg"}
    )
    assert response.json()["count"] == 3


@settings(max_examples=100, deadline=None, database=None)
@given(good_photos())
def test_generated_photos_are_counted(client: TestClient, photo: bytes) -> None:
    response = client.post("/invocations", content=photo, headers={"content-type": "image/png"})
    assert response.status_code == 200
    # Black and white has another grey on average, and so has a JPEG of the lowest quality.
    assert response.json()["count"] in {1, 2, 3}


def test_generated_bodies_are_answered_or_refused(client: TestClient) -> None:
    check_many(client, 300)


@pytest.mark.slow
def test_ten_thousand_generated_bodies_are_answered_or_refused(client: TestClient) -> None:
    check_many(client, 10_000)


@pytest.mark.parametrize("form", sorted(MODES))
def test_the_same_picture_counts_the_same_in_every_mode(client: TestClient, form: str) -> None:
    grey = round(3 / 6 * 255)
    for mode in MODES[form]:
        if mode in ("1", "I;16"):  # black and white, and more than 8 bits, have other greys
            continue
        photo = encode(Image.new("RGB", (60, 40), (grey,) * 3).convert(mode), form)
        response = client.post(
            "/invocations", content=photo, headers={"content-type": "application/x-image"}
        )
        assert response.json()["count"] == 3, mode


Make = Callable[[], tuple[str, bytes]]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda: ("image/png", png_claiming(60_000, 60_000)), 400, "at most 50,000,000"),
        (lambda: ("image/png", png_claiming(10_000, 10_000)), 400, "at most 50,000,000"),
        (lambda: ("image/jpeg", b""), 400, "empty"),
        (lambda: ("image/jpeg", bytes(7_000_000)), 413, "larger than"),
        (lambda: ("application/json", b"[" * 100_000), 400, "nested too deeply"),
        (lambda: ("application/json", b"[[[NaN, 0, 0]]]"), 400, "whole numbers"),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, make: Make, status: int, message: str) -> None:
    content_type, body = make()
    response = client.post("/invocations", content=body, headers={"content-type": content_type})
    assert response.status_code == status
    assert message in response.json()["error"]
