"""Copy photos and metadata from the public bucket to the working folder; can be resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import write_atomic
from data_prep.folder import (
    REASON_NO_PHOTO,
    REASON_NOT_IN_BUCKET,
    LeftOut,
    UnusableError,
    metadata_path,
    photo_path,
    start_selection,
    usable_bin,
    write_selection,
)
from data_prep.objects import PUBLIC_BUCKET, Bucket, Failures, public_bucket, run

REQUESTS = 64  # at the same time


def download(
    ids: Sequence[str],
    folder: Path,
    counts: range,
    *,
    bucket: str = PUBLIC_BUCKET,
    limit: int | None = None,
    requests: int = REQUESTS,
) -> tuple[list[str], list[LeftOut]]:
    """Fetch the metadata of each id, and the photo if its count is in `counts`.

    Files that are already there are not fetched again. With `limit` the ids are tried in their
    order until there are that many photos. Writes `selection.json`; returns the ids that are in
    the folder, and those left out. Raises DataError if more than a few could not be fetched.
    """
    start_selection(folder)
    source, failures = public_bucket(bucket), Failures()
    wanted = len(ids) if limit is None else limit
    photos: list[str] = []
    left_out: list[LeftOut] = []

    async def fetch(photo_id: str) -> None:
        await fetch_metadata(source, folder, photo_id)
        usable_bin(metadata_path(folder, photo_id).read_bytes(), counts)
        await fetch_photo(source, folder, photo_id)

    progress: tqdm[Any] = tqdm(total=wanted, desc="download", unit=" photos")
    with progress:
        while len(photos) < wanted and (tried := len(photos) + len(left_out)) < len(ids):
            batch = ids[tried : tried + wanted - len(photos)]  # so that `limit` is met exactly
            reasons = run(
                failures.each(
                    fetch,
                    batch,
                    at_once=requests,
                    done=lambda reason: progress.update(limit is None or reason is None),
                )
            )
            for photo_id, reason in zip(batch, reasons, strict=True):
                if reason is None:
                    photos.append(photo_id)
                else:
                    left_out.append(LeftOut(photo_id, reason))
        progress.total = progress.n  # the bucket may hold fewer than `limit`
    failures.check(len(photos) + len(left_out))
    write_selection(folder, photos, left_out)
    return photos, left_out


def fetch_photos(ids: Sequence[str], folder: Path, bucket: Bucket, requests: int) -> None:
    """Fetch the photos that the bucket has and the folder does not, with their metadata.

    Raises DataError if more than a few could not be fetched.
    """

    async def fetch(photo_id: str) -> None:
        await fetch_photo(bucket, folder, photo_id)
        await fetch_metadata(bucket, folder, photo_id)

    failures = Failures()
    run(failures.each(fetch, ids, at_once=requests))
    failures.check(len(ids))


async def fetch_metadata(bucket: Bucket, folder: Path, photo_id: str) -> None:
    """Fetch a photo's metadata unless it is there; raises UnusableError without it."""
    key = f"metadata/{photo_id}.json"
    await fetch_file(bucket, key, metadata_path(folder, photo_id), REASON_NOT_IN_BUCKET)


async def fetch_photo(bucket: Bucket, folder: Path, photo_id: str) -> None:
    """Fetch one photo unless it is there; raises UnusableError if the bucket does not have it."""
    key = f"bin-images/{photo_id}.jpg"
    await fetch_file(bucket, key, photo_path(folder, photo_id), REASON_NO_PHOTO)


async def fetch_file(bucket: Bucket, key: str, path: Path, reason: str) -> None:
    """Fetch an object unless the file exists; raises UnusableError(reason) without such a key."""
    if path.exists():
        return
    content = await bucket.fetch(key)
    if content is None:
        raise UnusableError(reason)
    write_atomic(path, content)
