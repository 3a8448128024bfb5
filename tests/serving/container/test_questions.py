import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.container import questions
from serving.container.questions import (
    MAX_PHOTOS,
    Questions,
    RequestError,
    read_questions,
    read_record,
)
from tests.support.tiny_model import grey_photo

PHOTO = grey_photo(3)
TEXT = base64.b64encode(PHOTO).decode()
PIXELS = np.arange(2 * 4 * 3).reshape(2, 4, 3)


def read(value: Any, record: int | None = None) -> Questions:
    return read_questions(json.dumps(value).encode(), "application/json", record)


def refused(value: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "image/png", "application/x-image", "Image/JPEG; q=1"]
)
def test_photo_content_types_are_read(content_type: str) -> None:
    found = read_questions(b"photo", content_type, None)
    assert ([each.photo for each in found.asked], found.many) == ([b"photo"], False)


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "image/", "multipart/form-data"])
def test_other_content_types_are_refused_and_the_right_ones_named(content_type: str | None) -> None:
    allowed = "image/jpeg, image/png, application/x-image, application/json"
    with pytest.raises(RequestError, match=allowed) as caught:
        read_questions(b"photo", content_type, None)
    assert caught.value.status == 415


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/json"])
def test_an_empty_body_is_refused(content_type: str) -> None:
    with pytest.raises(RequestError, match="empty") as caught:
        read_questions(b"", content_type, None)
    assert caught.value.status == 400


def test_base64_may_be_broken_into_lines() -> None:
    lines = base64.encodebytes(PHOTO).decode()
    assert "\n" in lines.strip()
    assert read(lines) == read(TEXT)


def test_base64_is_a_photo() -> None:
    found = read(TEXT)
    assert (found.asked[0].photo, found.many) == (PHOTO, False)


def test_a_list_of_photos_is_many_even_with_one() -> None:
    assert read([TEXT]).many
    assert [each.photo for each in read([TEXT, {"photo": TEXT}]).asked] == [PHOTO, PHOTO]


def test_rows_of_pixels_are_a_photo() -> None:
    for value in (PIXELS.tolist(), {"photo": PIXELS.tolist()}, PIXELS.astype(float).tolist()):
        (question,) = read(value).asked
        assert isinstance(question.photo, np.ndarray)
        assert question.photo.dtype == np.uint8
        np.testing.assert_array_equal(question.photo, PIXELS)


def test_several_arrays_are_several_photos() -> None:
    found = read([PIXELS.tolist(), (PIXELS + 1).tolist()])
    assert found.many
    for number, question in enumerate(found.asked):
        np.testing.assert_array_equal(question.photo, PIXELS + number)


def test_a_list_may_mix_sizes_and_forms() -> None:
    found = read([PIXELS.tolist(), PIXELS[:1].tolist(), TEXT, {"photo": PIXELS.tolist()}])
    assert found.many
    shapes = [getattr(each.photo, "shape", None) for each in found.asked]
    assert shapes == [(2, 4, 3), (1, 4, 3), None, (2, 4, 3)]


def test_of_several_photos_the_unreadable_one_is_named() -> None:
    junk = base64.b64encode(b"junk").decode()
    assert str(refused([TEXT, junk])).startswith("photo 2 of 2: not a readable")


def test_a_photo_s_own_record_wins_over_that_of_the_request() -> None:
    found = read(
        [{"photo": TEXT, "record": {"count": 2}}, TEXT, {"photo": TEXT, "record": None}], 4
    )
    assert [each.record for each in found.asked] == [2, 4, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the list is empty"),
        ({}, 'has the field "photo"'),
        ({"photo": TEXT, "url": "http://x"}, 'has the field "photo"'),
        ({"photo": TEXT, "record": {"count": -1}}, "record's count is -1"),
        ({"photo": TEXT, "record": {"count": "3"}}, "record's count is '3'"),
        ({"photo": TEXT, "record": {"count": True}}, "record's count is True"),
        ({"photo": TEXT, "record": 3}, 'an object with the field "count"'),
        ({"photo": TEXT, "record": {}}, 'an object with the field "count"'),
        ({"photo": TEXT, "record": {"count": 3, "items": 3}}, "and no others"),
        ({"photo": TEXT, "expected": 3}, 'optionally "record", and no others'),
        ("", "a photo is empty"),
        ("not base64!", "not base64"),
        (3, "base64 text, or rows"),
        (None, "base64 text, or rows"),
        ([None], "base64 text, or rows"),
        ([1, 2, 3], "base64 text, or rows"),
        ([[1, 2], [3]], "base64 text, or rows"),
        ([[[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]], "rows of different lengths"),
        ([[[1, 2, 3]], 5], "rows of different lengths"),
        ([[1, 2, 3]], "base64 text, or rows"),
        ([[[1, 2, 3, 4]]], "must be height × width × 3"),
        ([[[1, 2, 3], 5]], "must be height × width × 3"),
        ([[]], "base64 text, or rows"),
        ([["a" * 1000, *[""] * 1000]], "base64 text, or rows"),
        ([[[0, 0, 256]]], "whole numbers from 0 to 255"),
        ([[[0, 0, -1]]], "whole numbers from 0 to 255"),
        ([[[0, 0, 0.5]]], "whole numbers from 0 to 255"),
        ([[[0, 0, float("nan")]]], "whole numbers from 0 to 255"),
        ([[[0, 0, float("inf")]]], "whole numbers from 0 to 255"),
        ([[[0, 0, None]]], "whole numbers from 0 to 255"),
        ([[[0, "b", "c"]]], "whole numbers from 0 to 255"),
        ([[[True, False, True]]], "whole numbers from 0 to 255"),
        ([[[0, 0, 10**400]]], "whole numbers from 0 to 255"),
        ([[[0, 0, 10**30]]], "whole numbers from 0 to 255"),
        ([{"photo": [[[[1, 2, 3]]]]}], "base64 text, or rows"),
    ],
)
def test_what_is_no_photo_is_refused(value: Any, message: str) -> None:
    error = refused(value)
    assert error.status == 400
    assert message in str(error)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"photo": }'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="JSON") as caught:
        read_questions(body, "application/json", None)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


def test_too_many_photos_are_refused() -> None:
    assert len(read([TEXT] * MAX_PHOTOS).asked) == MAX_PHOTOS
    for photo in (TEXT, PIXELS.tolist()):
        assert refused([photo] * (MAX_PHOTOS + 1)).status == 413


def test_photos_that_are_large_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("L", (100, 100)).save(buffer, "PNG")
    large = base64.b64encode(buffer.getvalue()).decode()
    monkeypatch.setattr(questions, "MAX_PIXELS", 25_000)
    assert len(read([large] * 2).asked) == 2
    error = refused([large] * 3)
    assert error.status == 413
    assert "30,000 pixels together, at most 25,000" in str(error)


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("0", 0), ("17", 17), ("007", 7)])
def test_a_record_in_the_query_is_a_count(text: str | None, expected: int | None) -> None:
    assert read_record(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1.5", "three", "٣", "9" * 20])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="count") as caught:
        read_record(text)
    assert caught.value.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(TEXT),
    lambda within: (
        st.lists(within, max_size=4)
        | st.dictionaries(st.sampled_from(["photo", "record", "count", "x"]), within, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused_in_one_line(value: Any) -> None:
    try:
        found = read(value)
    except RequestError as error:
        assert 400 <= error.status < 500
        assert "\n" not in str(error)
    else:
        assert found.asked
