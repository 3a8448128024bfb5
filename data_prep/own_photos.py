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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.download import REQUESTS, check_failures, fetch_file
from data_prep.folder import (
    REASON_NO_PHOTO,
    REASON_OUT_OF_RANGE,
    DataError,
    LeftOut,
    metadata_path,
    photo_path,
    start_selection,
    write_atomic,
    write_selection,
)
from data_prep.objects import Bucket, FetchError, each, own_bucket, run

SUFFIXES = {".jpg", ".jpeg", ".png"}
UNSAFE = re.compile(r"[^A-Za-z0-9._-]")  # in a file name, or in a tar's


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
                name = "-".join(file.relative_to(source).with_suffix("").parts)
                photos.append(OwnPhoto(name, str(file), int(folder.name), ""))
    if not photos:
        raise DataError(
            f"--source folder {source}: no photo in a folder that is called as its count, such as "
            f"{source / '3' / 'photo.jpg'}"
        )
    return _with_unique_ids(photos)


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
    return _with_unique_ids(photos)


def _read_row(file: Path, line: int, row: dict[str, str | None]) -> OwnPhoto:
    place, count = (row["photo"] or "").strip(), (row["count"] or "").strip()
    if not place or not count.isdecimal():
        raise DataError(f"--source csv {file}, line {line}: needs a photo and a whole count")
    if not place.startswith("s3://"):
        place = str(file.parent / place)
    return OwnPhoto(Path(place).stem, place, int(count), (row.get("group") or "").strip())


def _with_unique_ids(photos: list[OwnPhoto]) -> list[OwnPhoto]:
    """Ids that may be file names, each once: where two would be the same, all get a hash of the
    place, so that the order of the photos does not matter."""
    names = Counter(UNSAFE.sub("-", photo.id) for photo in photos)

    def id_of(photo: OwnPhoto) -> str:
        name = UNSAFE.sub("-", photo.id)
        digest = hashlib.sha256(photo.place.encode()).hexdigest()[:8]
        return name if names[name] == 1 else f"{name}-{digest}"

    return [replace(photo, id=id_of(photo)) for photo in photos]


def take_in(
    photos: Sequence[OwnPhoto], folder: Path, counts: range, *, requests: int = REQUESTS
) -> tuple[list[str], list[LeftOut]]:
    """Copy the photos with a count in `counts` into the working folder, with their metadata.

    A photo that is there already is not fetched from S3 again. Writes `selection.json`; returns
    the ids that are there now, and those left out.
    Raises DataError when some could not be fetched, after the others were.
    """
    start_selection(folder)
    wanted = [photo for photo in photos if photo.count in counts]
    buckets = {_bucket_of(photo): own_bucket(_bucket_of(photo)) for photo in wanted if photo.in_s3}
    progress: tqdm[Any] = tqdm(total=len(wanted), desc="download", unit=" photos")

    async def copy(photo: OwnPhoto) -> bool | FetchError:
        try:
            return await _copy(photo, folder, buckets)
        except FetchError as error:
            return error
        finally:
            progress.update()

    with progress:
        outcomes = run(each(copy, wanted, at_once=requests))
    check_failures([outcome for outcome in outcomes if isinstance(outcome, FetchError)])
    there = {photo.id for photo, outcome in zip(wanted, outcomes, strict=True) if outcome}
    taken = [photo.id for photo in wanted if photo.id in there]
    left_out = [
        LeftOut(photo.id, REASON_NO_PHOTO if photo.count in counts else REASON_OUT_OF_RANGE)
        for photo in photos
        if photo.id not in there
    ]
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
