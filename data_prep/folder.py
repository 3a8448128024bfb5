"""The working folder, through which the steps hand photos and records to each other.

    <folder>/bin-images/<id>.jpg      as in the public bucket
    <folder>/metadata/<id>.json       as in the public bucket
    <folder>/selection.json           ids of the downloaded photos, and why others were left out
    <folder>/split.csv                count, group and side of each photo
    <folder>/split.json               settings of the split, and which photos were left out
    <folder>/datasets/<name>/         the packed data set, as in our bucket

An id is text and never converted to a number: `00001` and `1` are two photos.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from common.files import write_atomic
from data_prep.products import asin_of

REASON_NOT_IN_BUCKET = "not in the bucket"
REASON_NOT_FETCHED = "could not be fetched"
REASON_NO_METADATA = "metadata missing"
REASON_NO_PHOTO = "photo missing"
REASON_BROKEN_PHOTO = "photo cannot be decoded"
REASON_NOT_JSON = "metadata is not JSON"
REASON_NO_COUNT = "metadata without EXPECTED_QUANTITY"
REASON_NOT_WHOLE = "EXPECTED_QUANTITY is not a whole number"
REASON_OUT_OF_RANGE = "count out of range"
REASON_TESTED = "shares a product with a test photo"


class DataError(ValueError):
    """Data preparation cannot continue; the message is one line: what, where, what to do."""


class UnusableError(ValueError):
    """A photo cannot be part of the data set; the message is the reason for leaving it out."""


@dataclass(frozen=True, order=True, slots=True)
class LeftOut:
    """A photo that is not part of the data set."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bin:
    """The count and the products of a photo, from its metadata."""

    count: int
    asins: tuple[str, ...]


def photo_path(folder: Path, photo_id: str) -> Path:
    return folder / "bin-images" / f"{photo_id}.jpg"


def metadata_path(folder: Path, photo_id: str) -> Path:
    return folder / "metadata" / f"{photo_id}.json"


def dataset_path(folder: Path, name: str) -> Path:
    return folder / "datasets" / name


def parse_metadata(text: bytes) -> Bin:
    """Read the count (EXPECTED_QUANTITY) and the products (ASINs in BIN_FCSKU_DATA).

    The key of a product is its ASIN, or a seller's number whose entry contains the ASIN.
    Raises UnusableError if there is no valid count.
    """
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise UnusableError(REASON_NOT_JSON) from error
    if not isinstance(metadata, dict) or "EXPECTED_QUANTITY" not in metadata:
        raise UnusableError(REASON_NO_COUNT)
    count = metadata["EXPECTED_QUANTITY"]
    if not isinstance(count, int) or isinstance(count, bool):
        raise UnusableError(REASON_NOT_WHOLE)
    products = metadata.get("BIN_FCSKU_DATA")
    if not isinstance(products, dict):
        return Bin(count, ())
    asins = {asin_of(key, product) for key, product in products.items()}
    return Bin(count, tuple(map(intern, sorted(asins))))


def usable_bin(text: bytes, counts: range) -> Bin:
    """Read a photo's metadata; raises UnusableError unless its count is one of `counts`."""
    found = parse_metadata(text)
    if found.count not in counts:
        raise UnusableError(REASON_OUT_OF_RANGE)
    return found


def start_selection(folder: Path) -> None:
    """Delete the records of earlier runs, so that no later step uses a half-filled folder."""
    for name in ("selection.json", "split.json", "split.csv"):
        (folder / name).unlink(missing_ok=True)


def write_selection(folder: Path, photos: Iterable[str], left_out: Iterable[LeftOut]) -> None:
    """Record the requested photos; other files in the folder stay out of the data set."""
    selection = {"photos": sorted(photos), "left_out": by_reason(left_out)}
    write_atomic(folder / "selection.json", to_json(selection))


def by_reason(left_out: Iterable[LeftOut]) -> dict[str, Any]:
    """Left-out photos as they are stored: the total, and the number and the ids by reason."""
    photos: dict[str, list[str]] = {}
    for one in sorted(left_out):
        photos.setdefault(one.reason, []).append(one.id)
    reasons = {reason: len(photos[reason]) for reason in sorted(photos)}
    return {
        "total": sum(reasons.values()),
        "reasons": reasons,
        "photos": {reason: photos[reason] for reason in reasons},
    }


def read_left_out(content: Mapping[str, Any]) -> list[LeftOut]:
    """Invert `by_reason`; the photos are sorted by id."""
    photos: Mapping[str, list[str]] = content["photos"]
    return sorted(LeftOut(photo_id, reason) for reason, ids in photos.items() for photo_id in ids)


def summarize(left_out: Iterable[LeftOut]) -> str:
    """Say in one line how many photos were left out, and why."""
    reasons = Counter(one.reason for one in left_out)
    if not reasons:
        return "nothing left out"
    listed = ", ".join(f"{reason}: {number:,}" for reason, number in sorted(reasons.items()))
    return f"{reasons.total():,} left out ({listed})"


def to_json(content: Mapping[str, Any]) -> bytes:
    """Encode `content` for a file; equal content gives equal bytes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, hint: str) -> Any:
    """Read a file of an earlier step; raises DataError with `hint` if it is absent or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: {hint}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {hint}") from error


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
