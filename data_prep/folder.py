"""The working folder: what every step agrees on.

    <folder>/bin-images/<id>.jpg      as in the public bucket
    <folder>/metadata/<id>.json       as in the public bucket
    <folder>/selection.json           ids that are there, and those left out with the reason
    <folder>/split.csv                count, group and side of each photo
    <folder>/split.json               how they were split, and what was left out
    <folder>/datasets/<name>/         the packed dataset, as in our bucket

An id is text: `00001` and `1` are two photos. It is never turned into a number.
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
    """Data preparation cannot go on; the message is one line: what, where, what to do."""


class MetadataError(ValueError):
    """This photo's metadata gives no count; the message is the reason for leaving it out."""


@dataclass(frozen=True, order=True, slots=True)
class LeftOut:
    """One photo that the dataset does without."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bin:
    """What the metadata says about one photo."""

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

    A product's key there is its ASIN or a seller's number for it, which has the ASIN inside.
    Raises MetadataError when there is no count to read.
    """
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise MetadataError(REASON_NOT_JSON) from error
    if not isinstance(metadata, dict) or "EXPECTED_QUANTITY" not in metadata:
        raise MetadataError(REASON_NO_COUNT)
    count = metadata["EXPECTED_QUANTITY"]
    if not isinstance(count, int) or isinstance(count, bool):
        raise MetadataError(REASON_NOT_WHOLE)
    products = metadata.get("BIN_FCSKU_DATA")
    if not isinstance(products, dict):
        return Bin(count, ())
    asins = {_asin(key, product) for key, product in products.items()}
    return Bin(count, tuple(map(intern, sorted(asins))))


def _asin(key: str, product: object) -> str:
    asin = product.get("asin") if isinstance(product, dict) else None
    return asin if isinstance(asin, str) and asin else key


def start_selection(folder: Path) -> None:
    """Drop what earlier runs recorded: no later step may work on a half-filled folder."""
    for name in ("selection.json", "split.json", "split.csv"):
        (folder / name).unlink(missing_ok=True)


def write_selection(folder: Path, photos: Iterable[str], left_out: Iterable[LeftOut]) -> None:
    """Record what was asked for; older files in the folder stay out of the dataset."""
    selection = {"photos": sorted(photos), "left_out": by_reason(left_out)}
    write_atomic(folder / "selection.json", to_json(selection))


def by_reason(left_out: Iterable[LeftOut]) -> dict[str, Any]:
    """Left-out photos as files hold them: how many, how many for each reason, and which."""
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
    """What `by_reason` made, in the order of the ids."""
    photos: Mapping[str, list[str]] = content["photos"]
    return sorted(LeftOut(photo_id, reason) for reason, ids in photos.items() for photo_id in ids)


def summarize(left_out: Iterable[LeftOut]) -> str:
    """One line: how many photos were left out, and why."""
    reasons = Counter(one.reason for one in left_out)
    if not reasons:
        return "nothing left out"
    listed = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))
    return f"{reasons.total():,} left out: {listed}"


def to_json(content: Mapping[str, Any]) -> bytes:
    """The same content gives the same bytes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, hint: str) -> Any:
    """Read a file that an earlier step wrote; `hint` says which one to run.

    Raises DataError when it is absent or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: {hint}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {hint}") from error


def sha256_of(file: Path) -> str:
    """Of its bytes, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
