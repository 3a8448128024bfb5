"""Copy the user's own photos to the working folder, laid out like the public bucket.

A folder holds one folder per count: PHOTOS/3/shelf-7.jpg shows 3 items. A CSV table has the
columns photo (a path relative to the table, or s3://bucket/key), count and optionally group:
photos of the same group go to the same side of the split.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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

    @property
    def s3(self) -> tuple[str, str] | None:
        """The bucket and the key of a photo in S3."""
        bucket, _, key = self.place.removeprefix("s3://").partition("/")
        return (bucket, key) if self.place.startswith("s3://") else None


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


def read_csv(file: Path) -> list[OwnPhoto]:
    """Read the photos of a table; raises DataError if it or one of its rows is invalid."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            reader = csv.DictReader(content)
            missing = {"photo", "count"} - set(reader.fieldnames or [])
            if missing:
                raise DataError(
                    f"--source csv {file}: no column {' and no '.join(sorted(missing))}; the first "
                    "line must name the columns photo, count and optionally group"
                )
            photos = [_read_row(file, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--source csv {file}: {error}") from error
    if not photos:
        raise DataError(f"--source csv {file}: there is no photo in it")
    (place, times), *_ = Counter(photo.place for photo in photos).most_common(1)
    if times > 1:
        raise DataError(f"--source csv {file}: {place} is listed {times} times")
    return photos


def _read_row(file: Path, line: int, row: dict[str, str | None]) -> OwnPhoto:
    place, count = (row["photo"] or "").strip(), (row["count"] or "").strip()
    if not place or not count.isdecimal():
        raise DataError(f"--source csv {file}, line {line}: a photo and a whole count are required")
    scheme = place.partition("://")[0] if "://" in place else ""
    if scheme not in {"", "s3"}:
        raise DataError(
            f"--source csv {file}, line {line}: {place} is neither a path nor s3://bucket/key"
        )
    where = place if scheme else str(file.parent / place)
    return OwnPhoto(id_of(place), where, int(count), (row.get("group") or "").strip())


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
        metadata = {
            "EXPECTED_QUANTITY": photo.count,
            "BIN_FCSKU_DATA": {photo.group: {}} if photo.group else {},
        }
        write_atomic(metadata_path(folder, photo.id), json.dumps(metadata).encode())

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
