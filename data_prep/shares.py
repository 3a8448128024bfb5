"""One machine's share of preparing a data set: from the public bucket to ours, beside others.

Every machine runs the same command on the same list. What one has found out the others read under
`preparing/<name>/<key>/` in our bucket: first the metadata of its photos, from which each makes
the same split and the same plan of shards, then which shards there are. The first machine joins
the manifest when all are there. One that died is started again, and does what is still missing.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from tqdm import tqdm

from data_prep.download import fetch_photos
from data_prep.folder import (
    REASON_NOT_FETCHED,
    REASON_NOT_IN_BUCKET,
    REASON_OUT_OF_RANGE,
    Bin,
    LeftOut,
    MetadataError,
    dataset_path,
    parse_metadata,
    to_json,
)
from data_prep.objects import Bucket, Failures, FetchError, each, public_bucket, run
from data_prep.pack import VERSIONS, Part, ShardPlan, join, pack_shard, plan_shards, read_part
from data_prep.processes import process_pool
from data_prep.split import Method, Split, check_enough, describe, split_bins
from data_prep.upload import stored, upload_file, upload_joined

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
LOOK_SECONDS = float(os.environ.get("SHARE_LOOK_SECONDS", "2"))  # at what the others have done


@dataclass(frozen=True)
class Share:
    """Which of how many machines this is, the first being 1."""

    number: int
    of: int

    def mine(self, things: Sequence[T]) -> Sequence[T]:
        """Those that fall to this machine."""
        return things[self.number - 1 :: self.of]


@dataclass(frozen=True)
class Settings:
    """What all machines agree on."""

    name: str
    counts: range
    method: Method
    test_fraction: float
    size: int
    shard_mb: float
    min_photos: int

    def key(self, ids: Sequence[str]) -> str:
        """A name for what comes out of these settings and photos."""
        told = json.dumps([asdict(self) | {"counts": list(self.counts)}, VERSIONS, list(ids)])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


class Board:
    """`preparing/<name>/<key>/` in our bucket: what the machines tell each other."""

    def __init__(self, s3: "S3Client", bucket: str, prefix: str) -> None:
        self._s3, self._bucket, self._prefix = s3, bucket, prefix

    def names(self) -> set[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        keys = (item["Key"] for page in pages for item in page.get("Contents", []))
        return {key.removeprefix(self._prefix) for key in keys}

    def read(self, name: str) -> bytes:
        answer = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
        return answer["Body"].read()

    def write(self, name: str, content: bytes) -> None:
        self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)

    def wait_for(self, names: Iterable[str], what: str) -> None:
        """Until all of them are there."""
        wanted = set(names)
        # Machines that were given other settings wait under another key, for ever.
        desc = f"wait for {what} in {self._prefix}"
        with tqdm(total=len(wanted), desc=desc, unit="") as progress:
            while missing := wanted - self.names():
                progress.update(len(wanted) - len(missing) - progress.n)
                time.sleep(LOOK_SECONDS)
            progress.update(len(wanted) - progress.n)


def prepare_share(
    ids: Sequence[str],
    share: Share,
    settings: Settings,
    folder: Path,
    bucket: str,
    *,
    source_bucket: str,
    requests: int,
    workers: int | None,
) -> str:
    """Do this machine's share, from the public bucket to ours; returns the data set's URI.

    All but the first return when their own part is done. Raises DataError when too little is left,
    or when more than a few objects could not be fetched.
    """
    work = ShareOfWork(share, settings, folder, bucket, settings.key(ids))
    source = public_bucket(source_bucket)
    work.publish_metadata(share.mine(ids), source, requests)
    split = work.read_split()
    if share.number == 1:
        print(describe(split.photos))
    plans = plan_shards(split, settings.size, settings.shard_mb)
    work.pack(share.mine(plans), source, requests, workers)
    if share.number == 1:
        work.join(split, plans)
    return f"s3://{bucket}/datasets/{settings.name}/"


class ShareOfWork:
    """The steps of one machine, in their order."""

    def __init__(
        self, share: Share, settings: Settings, folder: Path, bucket: str, key: str
    ) -> None:
        self._share, self._settings, self._folder, self._bucket = share, settings, folder, bucket
        self._s3 = boto3.client("s3")
        self._prefix = f"datasets/{settings.name}/"
        self._board = Board(self._s3, bucket, f"preparing/{settings.name}/{key}/")
        self._dataset = dataset_path(folder, settings.name)
        self._dataset.mkdir(parents=True, exist_ok=True)

    def publish_metadata(self, ids: Sequence[str], source: Bucket, requests: int) -> None:
        """Counts and products of these photos, for all machines."""
        name = _metadata_name(self._share)
        if name in self._board.names():
            return
        found = run(_read_metadata(ids, source, self._settings.counts, requests))
        self._board.write(name, found.encode())

    def read_split(self) -> Split:
        """The split of all photos, once the metadata of each is there."""
        names = [_metadata_name(Share(n + 1, self._share.of)) for n in range(self._share.of)]
        self._board.wait_for(names, "metadata")
        bins: dict[str, Bin] = {}
        left_out: list[LeftOut] = []
        for name in names:
            rows = csv.reader(io.StringIO(self._board.read(name).decode()))
            for photo_id, count, asins, reason in rows:
                if reason:
                    left_out.append(LeftOut(photo_id, reason))
                else:
                    bins[photo_id] = Bin(int(count), tuple(map(intern, json.loads(asins))))
        settings = self._settings
        split = split_bins(
            bins,
            left_out,
            settings.counts,
            method=settings.method,
            test_fraction=settings.test_fraction,
        )
        check_enough(split.photos, settings.counts, settings.min_photos)
        return split

    def pack(
        self, plans: Sequence[ShardPlan], source: Bucket, requests: int, workers: int | None
    ) -> None:
        """Fetch the photos of these shards, pack and upload each that is not there yet."""
        there = self._board.names()
        missing = [plan for plan in plans if not self._find_part(plan, there)]
        if missing:  # no manifest may stand while shards change
            self._s3.delete_object(Bucket=self._bucket, Key=f"{self._prefix}manifest.json")
        total = sum(len(plan.photos) for plan in plans)
        progress: tqdm[Any] = tqdm(total=total, desc="pack", unit=" photos")
        progress.update(total - sum(len(plan.photos) for plan in missing))
        with process_pool(workers) as pool, progress:
            for plan in missing:
                fetch_photos([photo.id for photo in plan.photos], self._folder, source, requests)
                part = pack_shard(plan, self._folder, self._dataset, self._settings.size, pool)
                upload_file(
                    self._s3,
                    self._dataset / plan.file,
                    self._bucket,
                    f"{self._prefix}{plan.file}",
                )
                self._board.write(_part_name(plan), to_json(asdict(part)))
                progress.update(len(plan.photos))

    def _find_part(self, plan: ShardPlan, there: set[str]) -> Part | None:
        """What is known of a shard that is in our bucket; None when another one is, of other
        settings."""
        if _part_name(plan) not in there:
            return None
        part = read_part(self._board.read(_part_name(plan)))
        found = stored(self._s3, self._bucket, f"{self._prefix}{plan.file}")
        return part if found == (part.shard.bytes, part.shard.sha256) else None

    def _wait_for_part(self, plan: ShardPlan) -> Part:
        """The same, once the machine whose shard it is has put it there."""
        while (part := self._find_part(plan, {_part_name(plan)})) is None:
            time.sleep(LOOK_SECONDS)
        return part

    def join(self, split: Split, plans: Sequence[ShardPlan]) -> None:
        """Lists and manifest, once every shard is there."""
        self._board.wait_for(map(_part_name, plans), "shards")
        parts = [self._wait_for_part(plan) for plan in plans]
        settings = self._settings
        join(
            self._dataset,
            split,
            parts,
            size=settings.size,
            shard_mb=settings.shard_mb,
            min_photos=settings.min_photos,
        )
        upload_joined(self._s3, self._dataset, self._bucket, self._prefix)


async def _read_metadata(ids: Sequence[str], source: Bucket, counts: range, requests: int) -> str:
    """A line of CSV for each id: count and products, or the reason for leaving it out."""
    progress: tqdm[Any] = tqdm(total=len(ids), desc="metadata", unit=" photos")
    failures = Failures()

    async def row(photo_id: str) -> tuple[str, int | str, str, str]:
        try:
            content = await source.fetch(f"metadata/{photo_id}.json")
        except FetchError as error:
            failures.add(error)
            return photo_id, "", "", REASON_NOT_FETCHED
        finally:
            progress.update()
        if content is None:
            return photo_id, "", "", REASON_NOT_IN_BUCKET
        try:
            found = parse_metadata(content)
        except MetadataError as error:
            return photo_id, "", "", str(error)
        if found.count not in counts:
            return photo_id, "", "", REASON_OUT_OF_RANGE
        return photo_id, found.count, json.dumps(found.asins), ""

    with progress:
        rows = await each(row, ids, at_once=requests)
    failures.check(len(ids))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue()


def _metadata_name(share: Share) -> str:
    return f"metadata-{share.number}-of-{share.of}.csv"


def _part_name(plan: ShardPlan) -> str:
    return f"{Path(plan.file).stem}.json"
