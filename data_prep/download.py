"""The public bucket → the working folder, many requests at a time, resumable."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import write_atomic
from data_prep.folder import (
    REASON_NO_PHOTO,
    REASON_NOT_FETCHED,
    REASON_NOT_IN_BUCKET,
    REASON_OUT_OF_RANGE,
    LeftOut,
    MetadataError,
    metadata_path,
    parse_metadata,
    photo_path,
    start_selection,
    write_selection,
)
from data_prep.objects import (
    PUBLIC_BUCKET,
    Bucket,
    Failures,
    FetchError,
    each,
    public_bucket,
    run,
)

REQUESTS = 64  # at a time
BATCH = 10_000  # bounds the memory that waiting ids take


def download(
    ids: Iterable[str],
    folder: Path,
    counts: range,
    *,
    bucket: str = PUBLIC_BUCKET,
    limit: int | None = None,
    requests: int = REQUESTS,
) -> tuple[list[str], list[LeftOut]]:
    """Fetch metadata, and the photo where the count is in `counts`, of each id.

    Files that are already there are not fetched again. With `limit` it stops after that
    many photos, taking the ids in their order. Writes `selection.json`; returns the ids
    that are in the folder now, and those left out.
    Raises DataError when more than a few could not be fetched.
    """
    start_selection(folder)
    total = limit if limit is not None else len(ids) if isinstance(ids, list) else None
    progress: tqdm[Any] = tqdm(total=total, desc="download", unit=" photos")
    with progress:
        found = Download(public_bucket(bucket), folder, counts, progress)
        run(found.run(ids, limit, requests))
        progress.total = progress.n  # the bucket may hold fewer than `limit`
    found.failures.check(len(found.photos) + len(found.left_out))
    write_selection(folder, found.photos, found.left_out)
    return found.photos, found.left_out


def fetch_photos(ids: Sequence[str], folder: Path, bucket: Bucket, requests: int) -> None:
    """Fetch those of the photos that the bucket has and the folder does not.

    Raises DataError when more than a few could not be fetched.
    """
    failures = Failures()

    async def fetch(photo_id: str) -> None:
        try:
            await fetch_file(bucket, f"bin-images/{photo_id}.jpg", photo_path(folder, photo_id))
        except FetchError as error:
            failures.add(error)

    run(each(fetch, ids, at_once=requests))
    failures.check(len(ids))


class Download:
    """A download under way: what has come, what is left out, what could not be fetched."""

    def __init__(self, bucket: Bucket, folder: Path, counts: range, progress: "tqdm[Any]") -> None:
        self._bucket, self._folder, self._counts = bucket, folder, counts
        self._progress = progress
        self._bytes = 0
        self._all = True  # photos that are left out count as progress, too
        self.photos: list[str] = []
        self.left_out: list[LeftOut] = []
        self.failures = Failures()

    async def run(self, ids: Iterable[str], limit: int | None, requests: int) -> None:
        """Fetch the ids in order, until there are `limit` photos."""
        waiting, self._all = iter(ids), limit is None
        # A batch never asks for more than is still wanted, so `limit` is met exactly.
        while batch := list(islice(waiting, _batch_size(limit, len(self.photos)))):
            outcomes = await each(self._fetch, batch, at_once=requests)
            for photo_id, outcome in zip(batch, outcomes, strict=True):
                if outcome is None:
                    self.photos.append(photo_id)
                else:
                    self.left_out.append(LeftOut(photo_id, outcome))

    async def _fetch(self, photo_id: str) -> str | None:
        """Fetch one; returns the reason for leaving it out, or None when it has come."""
        try:
            outcome = await self._fetch_photo(photo_id)
        except FetchError as error:
            self.failures.add(error)
            outcome = REASON_NOT_FETCHED
        self._progress.update(self._all or outcome is None)
        self._progress.set_postfix_str(f"{self._bytes / 1e6:,.0f} MB", refresh=False)
        return outcome

    async def _fetch_photo(self, photo_id: str) -> str | None:
        """Fetch a photo and its metadata; returns the reason when it is left out."""
        metadata = metadata_path(self._folder, photo_id)
        if not await self._fetch_file(f"metadata/{photo_id}.json", metadata):
            return REASON_NOT_IN_BUCKET
        try:
            if parse_metadata(metadata.read_bytes()).count not in self._counts:
                return REASON_OUT_OF_RANGE
        except MetadataError as error:
            return str(error)
        photo = photo_path(self._folder, photo_id)
        if not await self._fetch_file(f"bin-images/{photo_id}.jpg", photo):
            return REASON_NO_PHOTO
        return None

    async def _fetch_file(self, key: str, path: Path) -> bool:
        fetched = await fetch_file(self._bucket, key, path)
        self._bytes += fetched or 0
        return fetched is not None


async def fetch_file(bucket: Bucket, key: str, path: Path) -> int | None:
    """Fetch an object unless the file is there; returns its bytes, None without such a key."""
    if path.exists():
        return 0
    content = await bucket.fetch(key)
    if content is None:
        return None
    write_atomic(path, content)
    return len(content)


def _batch_size(limit: int | None, done: int) -> int:
    return BATCH if limit is None else min(BATCH, limit - done)
