"""A request's body → the photos that it contains.

    image/jpeg, image/png, application/x-image     the bytes of one photo
    application/json                               one photo, or a list of them

In JSON a photo is its bytes in base64, or its pixels: rows of [red, green, blue], 0 to 255. An
object {"photo": …, "record": {"count": 3}} adds the inventory record.
"""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.container.preprocess import MAX_PIXELS, PhotoError, size_of

PHOTO_TYPES = ("image/jpeg", "image/png", "application/x-image")
JSON_TYPE = "application/json"
MAX_PHOTOS = 32  # in one request, which has to be answered within SageMaker's 60 seconds
PIXELS_DEPTH = 3  # of lists: rows, pixels, channels
MAX_RECORD = 1_000_000  # items; a larger inventory record is a mistake


class RequestError(ValueError):
    """The client's request cannot be answered: an HTTP status and a message of one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Question:
    """How many items does this photo show?"""

    photo: bytes | NDArray[np.uint8]  # JPEG or PNG, or pixels [height, width, 3]
    record: int | None = None  # count in the inventory


@dataclass(frozen=True)
class Questions:
    """All photos of one request."""

    asked: Sequence[Question]
    many: bool  # the request was a list, so the response is one


def read_questions(body: bytes, content_type: str | None, record: int | None) -> Questions:
    """Parse a body; `record` is the inventory record of each photo without one of its own.

    Raises RequestError (400, 413, 415).
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type in PHOTO_TYPES:
        if not body:
            raise RequestError(400, "the body is empty, send the bytes of a JPEG or PNG photo")
        return Questions([Question(body, record)], many=False)
    if media_type != JSON_TYPE:
        allowed = ", ".join((*PHOTO_TYPES, JSON_TYPE))
        raise RequestError(
            415, f"content type {media_type[:80]!r} is not read, send one of {allowed}"
        )
    questions = _from_json(_parse(body), record)
    if len(questions.asked) > 1:
        _limit_work(questions.asked)
    return questions


def read_record(text: str | None) -> int | None:
    """The `record` of a query string, a count. Raises RequestError (400)."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise RequestError(400, f"record={text[:20]!r} is no count, send a whole number")
    return _count(int(text))


def _parse(body: bytes) -> Any:
    if not body:
        raise RequestError(400, "the body is empty, send a photo in base64 or as pixels")
    try:
        return json.loads(body)
    except RecursionError as error:
        raise RequestError(400, "the JSON is nested too deeply") from error
    except ValueError as error:
        problem = " ".join(str(error).split())[:100]
        raise RequestError(400, f"the body is not readable as JSON: {problem}") from error


def _from_json(value: Any, record: int | None) -> Questions:
    """A list contains photos, unless it is nested three times: then it is the pixels of one."""
    if not isinstance(value, list) or _depth(value) == PIXELS_DEPTH:
        return Questions([_question(value, record)], many=False)
    if not value:
        raise RequestError(400, "the list is empty, send at least one photo")
    if len(value) > MAX_PHOTOS:
        raise RequestError(
            413, f"{len(value)} photos are too many, send at most {MAX_PHOTOS} at once"
        )
    return Questions([_question(each, record) for each in value], many=True)


def _depth(value: Any) -> int:
    """Nesting of lists along the first elements, if the innermost is a number; otherwise 0."""
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth if isinstance(value, int | float) else 0


def _question(value: Any, record: int | None) -> Question:
    if isinstance(value, dict):
        unknown = sorted(value.keys() - {"photo", "record"})
        if unknown or "photo" not in value:
            raise RequestError(
                400, 'an object has the field "photo", optionally "record", and no others'
            )
        if value.get("record") is not None:
            record = _record(value["record"])
        value = value["photo"]
    if isinstance(value, str):
        return Question(_bytes(value), record)
    if isinstance(value, list) and _depth(value) == PIXELS_DEPTH:
        return Question(_pixels(value), record)
    raise RequestError(400, "a photo is base64 text, or rows of [red, green, blue] pixels")


def _record(value: Any) -> int:
    if not isinstance(value, dict) or value.keys() != {"count"}:
        raise RequestError(400, 'a record is an object with the field "count", and no others')
    return _count(value["count"])


def _count(value: Any) -> int:
    if type(value) not in (int, float) or not 0 <= value <= MAX_RECORD or value != int(value):
        raise RequestError(400, f"a record's count is {value!r:.20}, must be a number of items")
    return int(value)


def _bytes(text: str) -> bytes:
    try:
        photo = base64.b64decode("".join(text.split()), validate=True)  # `base64` breaks lines
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, "a photo's text is not base64 of a JPEG or PNG") from error
    if not photo:
        raise RequestError(400, "a photo is empty, send the base64 of a JPEG or PNG")
    return photo


def _pixels(rows: list[Any]) -> NDArray[np.uint8]:
    """[height, width, 3]"""
    numbers: list[Any] = []
    width = len(rows[0])
    for row in rows:
        if not isinstance(row, list) or len(row) != width:
            raise RequestError(400, "pixels have rows of different lengths")
        for pixel in row:
            if not isinstance(pixel, list) or len(pixel) != 3:
                raise RequestError(400, "pixels must be height × width × 3")
            numbers += pixel
    # Neither NaN nor infinity is between 0 and 255, and True is not a number here.
    if not set(map(type, numbers)) <= {int, float} or not all(0 <= n <= 255 for n in numbers):
        raise RequestError(400, "pixels must be whole numbers from 0 to 255")
    pixels = np.array(numbers, np.float32).reshape(len(rows), width, 3)
    if (pixels != np.floor(pixels)).any():
        raise RequestError(400, "pixels must be whole numbers from 0 to 255")
    return pixels.astype(np.uint8)


def _limit_work(asked: Sequence[Question]) -> None:
    """All photos together may be as large as one."""
    total = 0
    for number, question in enumerate(asked, start=1):
        if isinstance(question.photo, bytes):
            try:
                total += math.prod(size_of(question.photo))
            except PhotoError as error:
                raise of_photo(number, len(asked), error) from error
    if total > MAX_PIXELS:
        raise RequestError(
            413, f"the photos have {total:,} pixels together, at most {MAX_PIXELS:,} are read"
        )


def of_photo(number: int, total: int, error: PhotoError) -> RequestError:
    """The error of one of several photos."""
    return RequestError(400, f"photo {number} of {total}: {error}")
