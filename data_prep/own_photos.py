"""Photos of one's own → the working folder, laid out as those of the public bucket.

folder    one folder a count: PHOTOS/3/shelf-7.jpg shows 3 items
csv       columns photo (a path, from the file's folder on, or s3://bucket/key), count and,
          if there is one, group: photos of a group are on one side of the split
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from common.files import write_atomic
from data_prep.download import REQUESTS, fetch_file
from data_prep.folder import (
    REASON_NO_PHOTO,
    REASON_NOT_FETCHED,
    REASON_OUT_OF_RANGE,
    DataError,
    LeftOut,
    metadata_path,
    photo_path,
    start_selection,
    write_selection,
)
from data_prep.objects import Bucket, Failures, FetchError, each, own_bucket, run

SUFFIXES = {".jpg", ".jpeg", ".png"}
UNSAFE = re.compile(r"[^A-Za-z0-9_-]")  # in a tar's names, where WebDataset's end at the first dot
LONGEST_NAME = 50  # of the 100 bytes that a tar has for one


@dataclass(frozen=True)
class OwnPhoto:
    """One photo, where it is, and what is known about it."""

    id: str
    place: str  # a path or s3://bucket/key
    count: int
    group: str  # empty: on its own

    @property
    def in_s3(self) -> bool:
        return self.place.startswith("s3://")


def read_folder(source: Path) -> list[OwnPhoto]:
    """Photos in folders that are called as their count. Raises DataError when there is none."""
    photos: list[OwnPhoto] = []
    for folder in sorted(_folders(source)):
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                photo_id = id_of(file.relative_to(source).as_posix())
                photos.append(OwnPhoto(photo_id, str(file), int(folder.name), ""))
    if not photos:
        raise DataError(
            f"--source folder {source}: no photo in a folder that is called as its count, such as "
            f"{source / '3' / 'photo.jpg'}"
        )
    return photos


def id_of(place: str) -> str:
    """What a photo is called: its place in words, and a hash of it, so that neither a like-named
    photo nor where the folder or the table lies makes it another."""
    words = UNSAFE.sub("-", str(PurePosixPath(place.partition("://")[2] or place).with_suffix("")))
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    return f"{words[-LONGEST_NAME:].strip('-')}-{digest}"


def _folders(source: Path) -> Iterator[Path]:
    try:
        yield from (path for path in source.iterdir() if path.is_dir() and path.name.isdecimal())
    except OSError as error:
        raise DataError(f"--source folder {source}: {error.strerror}") from error


def read_csv(file: Path) -> list[OwnPhoto]:
    """Photos of a table. Raises DataError when it cannot be read, or a row is not a photo's."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            reader = csv.DictReader(content)
            missing = {"photo", "count"} - set(reader.fieldnames or [])
            if missing:
                raise DataError(
                    f"--source csv {file}: no column {' and no '.join(sorted(missing))}; the first "
                    "line names the columns photo, count and perhaps group"
                )
            photos = [_read_row(file, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--source csv {file}: {error}") from error
    if not photos:
        raise DataError(f"--source csv {file}: no photo in it")
    (place, times), *_ = Counter(photo.place for photo in photos).most_common(1)
    if times > 1:
        raise DataError(f"--source csv {file}: {place} is there {times} times")
    return photos


def _read_row(file: Path, line: int, row: dict[str, str | None]) -> OwnPhoto:
    place, count = (row["photo"] or "").strip(), (row["count"] or "").strip()
    if not place or not count.isdecimal():
        raise DataError(f"--source csv {file}, line {line}: needs a photo and a whole count")
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
    """Copy the photos with a count in `counts` into the working folder, with their metadata.

    A photo that is there already is not fetched from S3 again. Writes `selection.json`; returns
    the ids that are there now, and those left out.
    Raises DataError when more than a few could not be fetched.
    """
    start_selection(folder)
    wanted = [photo for photo in photos if photo.count in counts]
    buckets = {_bucket_of(photo): own_bucket(_bucket_of(photo)) for photo in wanted if photo.in_s3}
    progress: tqdm[Any] = tqdm(total=len(wanted), desc="download", unit=" photos")
    failures = Failures()

    async def copy(photo: OwnPhoto) -> str | None:
        """The reason for leaving it out, if there is one."""
        try:
            return None if await _copy(photo, folder, buckets) else REASON_NO_PHOTO
        except FetchError as error:
            failures.add(error)
            return REASON_NOT_FETCHED
        finally:
            progress.update()

    with progress:
        outcomes = run(each(copy, wanted, at_once=requests))
    failures.check(len(wanted))
    reasons = {photo.id: REASON_OUT_OF_RANGE for photo in photos if photo.count not in counts}
    reasons |= {photo.id: reason for photo, reason in zip(wanted, outcomes, strict=True) if reason}
    taken = [photo.id for photo in photos if photo.id not in reasons]
    left_out = [LeftOut(photo.id, reasons[photo.id]) for photo in photos if photo.id in reasons]
    write_selection(folder, taken, left_out)
    return taken, left_out


async def _copy(photo: OwnPhoto, folder: Path, buckets: Mapping[str, Bucket]) -> bool:
    """Copy one photo and write its metadata; False when there is no such photo."""
    target = photo_path(folder, photo.id)
    if photo.in_s3:
        key = photo.place.removeprefix(f"s3://{_bucket_of(photo)}/")
        if await fetch_file(buckets[_bucket_of(photo)], key, target) is None:
            return False
    else:
        try:
            content = Path(photo.place).read_bytes()
        except FileNotFoundError:
            return False
        if not target.exists() or target.read_bytes() != content:
            write_atomic(target, content)
    metadata = {
        "EXPECTED_QUANTITY": photo.count,
        "BIN_FCSKU_DATA": {photo.group: {}} if photo.group else {},
    }
    write_atomic(metadata_path(folder, photo.id), json.dumps(metadata).encode())
    return True


def _bucket_of(photo: OwnPhoto) -> str:
    return photo.place.removeprefix("s3://").partition("/")[0]
