"""Copy the user's own photos to the working folder, laid out like the public bucket.

A folder holds one folder per count: PHOTOS/3/shelf-7.jpg shows 3 items. Tables are read by
own_tables.py. Photos of the same group, or with a product in common, go to the same side of the
split.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from common.files import write_atomic
from data_prep.download import REQUESTS, fetch_file
from data_prep.folder import (
    REASON_NO_PHOTO,
    REASON_OUT_OF_RANGE,
    DataError,
    LeftOut,
    UnusableError,
    metadata_path,
    photo_path,
    start_selection,
    write_selection,
)
from data_prep.objects import Failures, own_bucket, run
from data_prep.products import Product, to_entry

SUFFIXES = {".jpg", ".jpeg", ".png"}
UNSAFE = re.compile(r"[^A-Za-z0-9_-]")  # WebDataset ends the name of a sample at the first dot
LONGEST_NAME = 50  # of the 100 bytes that a tar has for a name


@dataclass(frozen=True)
class OwnPhoto:
    """A photo of the user's, with its count and its group."""

    id: str
    place: str  # a path or s3://bucket/key
    count: int
    group: str  # empty: a group of its own
    products: tuple[Product, ...] = ()

    @property
    def s3(self) -> tuple[str, str] | None:
        """The bucket and the key of a photo in S3."""
        bucket, _, key = self.place.removeprefix("s3://").partition("/")
        return (bucket, key) if self.place.startswith("s3://") else None

    def with_products(self, before: tuple[Product, ...]) -> "OwnPhoto":
        """The same photo, with more products before its own."""
        return replace(self, products=(*before, *self.products))

    def metadata(self) -> dict[str, Any]:
        """The photo's metadata, as in the public bucket; a group is an entry without a product."""
        keyed = {
            product.get("asin", f"{self.id}-{number}"): product
            for number, product in enumerate(self.products)
        }
        entries: dict[str, Any] = {key: to_entry(each) for key, each in keyed.items()}
        if self.group:
            entries.setdefault(self.group, {})
        return {"EXPECTED_QUANTITY": self.count, "BIN_FCSKU_DATA": entries}


def read_folder(source: Path) -> list[OwnPhoto]:
    """Find the photos in folders named after their count; raises DataError if there are none."""
    try:
        folders = sorted(path for path in source.iterdir() if path.name.isdecimal())
    except OSError as error:
        raise DataError(f"--source folder {source}: {error.strerror}") from error
    photos = [
        OwnPhoto(id_of(file.relative_to(source).as_posix()), str(file), int(folder.name), "")
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not photos:
        raise DataError(
            f"--source folder {source}: there is no photo in a folder named after its count, such "
            f"as {source / '3' / 'photo.jpg'}"
        )
    return photos


def id_of(place: str) -> str:
    """Derive a photo's id from its path, as words and a hash.

    So photos of the same name in different folders stay apart, and moving the whole folder or the
    table changes no id.
    """
    words = UNSAFE.sub("-", str(PurePosixPath(place.partition("://")[2] or place).with_suffix("")))
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return f"{words[-LONGEST_NAME:].strip('-')}-{digest}"


def take_in(
    photos: Sequence[OwnPhoto], folder: Path, counts: range, *, requests: int = REQUESTS
) -> tuple[list[str], list[LeftOut]]:
    """Copy the photos with a count in `counts` to the working folder, with their metadata.

    A photo that is already there is not fetched from S3 again. Writes `selection.json`; returns
    the ids that are in the folder, and those left out.
    Raises DataError if more than a few could not be fetched.
    """
    start_selection(folder)
    wanted = [photo for photo in photos if photo.count in counts]
    names = {photo.s3[0] for photo in wanted if photo.s3}
    buckets = {name: own_bucket(name) for name in names}

    async def copy(photo: OwnPhoto) -> None:
        if photo.count not in counts:
            raise UnusableError(REASON_OUT_OF_RANGE)
        target = photo_path(folder, photo.id)
        if photo.s3:
            bucket, key = photo.s3
            await fetch_file(buckets[bucket], key, target, REASON_NO_PHOTO)
        else:
            _copy_file(Path(photo.place), target)
        write_atomic(metadata_path(folder, photo.id), json.dumps(photo.metadata()).encode())

    progress: tqdm[Any] = tqdm(total=len(photos), desc="download", unit=" photos")
    failures = Failures()
    with progress:
        reasons = run(
            failures.each(copy, photos, at_once=requests, done=lambda _: progress.update())
        )
    failures.check(len(wanted))
    found = [(photo.id, reason) for photo, reason in zip(photos, reasons, strict=True)]
    taken = [photo_id for photo_id, reason in found if reason is None]
    left_out = [LeftOut(photo_id, reason) for photo_id, reason in found if reason]
    write_selection(folder, taken, left_out)
    return taken, left_out


def _copy_file(source: Path, target: Path) -> None:
    try:
        content = source.read_bytes()
    except FileNotFoundError as error:
        raise UnusableError(REASON_NO_PHOTO) from error
    if not target.exists() or target.read_bytes() != content:
        write_atomic(target, content)
