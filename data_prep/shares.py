"""One machine's share of preparing a data set, from the public bucket to ours.

All machines run the same command on the same list. They exchange what they found through
`preparing/<name>/<key>/` in our bucket: first the metadata of their photos, from which each
computes the same split and the same plan of shards, and then which shards exist. The first machine
writes the manifest once all shards are there. A machine that died is started again and does what
is still missing.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

import boto3
from tqdm import tqdm

from common.storage import list_keys
from data_prep.download import fetch_photos
from data_prep.folder import (
    REASON_NOT_IN_BUCKET,
    Bin,
    LeftOut,
    UnusableError,
    dataset_path,
    to_json,
    usable_bin,
)
from data_prep.objects import Bucket, Failures, public_bucket, run
from data_prep.options import DatasetOptions, PhotoOptions, Share
from data_prep.pack import VERSIONS, Part, ShardPlan, join, pack_shard, plan_shards, read_part
from data_prep.processes import process_pool
from data_prep.split import Split, check_enough, describe, split_bins
from data_prep.upload import stored, upload_file, upload_joined

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOOK_SECONDS = float(os.environ.get("SHARE_LOOK_SECONDS", "2"))  # between looks at the others


class Board:
    """`preparing/<name>/<key>/` in our bucket, where the machines leave each other files."""

    def __init__(self, s3: "S3Client", bucket: str, prefix: str) -> None:
        self._s3, self._bucket, self._prefix = s3, bucket, prefix

    def names(self) -> set[str]:
        keys = list_keys(self._s3, self._bucket, self._prefix)
        return {key.removeprefix(self._prefix) for key in keys}

    def read(self, name: str) -> bytes:
        answer = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
        return answer["Body"].read()

    def write(self, name: str, content: bytes) -> None:
        self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)

    def wait_for(self, names: Iterable[str], what: str) -> None:
        """Wait until all files of these names exist."""
        wanted = set(names)
        # The prefix is shown because a machine with other settings would wait here for ever.
        desc = f"wait for {what} in {self._prefix}"
        with tqdm(total=len(wanted), desc=desc, unit="") as progress:
            while missing := wanted - self.names():
                progress.update(len(wanted) - len(missing) - progress.n)
                time.sleep(LOOK_SECONDS)
            progress.update(len(wanted) - progress.n)


def work_key(options: DatasetOptions, ids: Sequence[str]) -> str:
    """Name the data set that comes out of these options and photos."""
    settings = asdict(options) | {"counts": list(options.counts)}
    del settings["workers"]  # which the result does not depend on
    text = json.dumps([settings, VERSIONS, list(ids)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare_share(
    ids: Sequence[str],
    share: Share,
    options: DatasetOptions,
    photos: PhotoOptions,
    folder: Path,
    bucket: str,
) -> str:
    """Do this machine's share, from the public bucket to ours; returns the data set's URI.

    All machines but the first return when their own part is done. Raises DataError if too few
    photos are left, or if more than a few objects could not be fetched.
    """
    work = OneMachine(share, options, folder, bucket, work_key(options, ids))
    source = public_bucket(photos.source_bucket)
    work.publish_metadata(share.mine(ids), source, photos.requests)
    split = work.read_split()
    if share.number == 1:
        print(describe(split.photos))
    plans = plan_shards(split, options.size, options.shard_mb)
    work.pack(share.mine(plans), source, photos.requests)
    if share.number == 1:
        work.join(split, plans)
    return f"s3://{bucket}/datasets/{options.name}/"


class OneMachine:
    """The steps of one machine, in their order."""

    def __init__(
        self, share: Share, options: DatasetOptions, folder: Path, bucket: str, key: str
    ) -> None:
        self._share, self._options, self._folder, self._bucket = share, options, folder, bucket
        self._s3 = boto3.client("s3")
        self._prefix = f"datasets/{options.name}/"
        self._board = Board(self._s3, bucket, f"preparing/{options.name}/{key}/")
        self._dataset = dataset_path(folder, options.name)
        self._dataset.mkdir(parents=True, exist_ok=True)

    def publish_metadata(self, ids: Sequence[str], source: Bucket, requests: int) -> None:
        """Write the counts and the products of these photos for all machines."""
        name = _metadata_name(self._share)
        if name in self._board.names():
            return
        rows = read_metadata(ids, source, self._options.counts, requests)
        self._board.write(name, rows.encode())

    def read_split(self) -> Split:
        """Wait for the metadata of all photos, and split them."""
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
        options = self._options
        split = split_bins(
            bins,
            left_out,
            options.counts,
            method=options.method,
            test_fraction=options.test_fraction,
        )
        check_enough(split.photos, options.counts, options.min_photos)
        return split

    def pack(self, plans: Sequence[ShardPlan], source: Bucket, requests: int) -> None:
        """Fetch the photos of these shards, and pack and upload each shard that is missing."""
        written = self._board.names()
        missing = [plan for plan in plans if not self._find_part(plan, written)]
        if missing:  # there must be no manifest while shards change
            self._s3.delete_object(Bucket=self._bucket, Key=f"{self._prefix}manifest.json")
        total = sum(len(plan.photos) for plan in plans)
        waiting = sum(len(plan.photos) for plan in missing)
        progress: tqdm[Any] = tqdm(
            total=total, initial=total - waiting, desc="pack", unit=" photos"
        )
        with process_pool(self._options.workers) as pool, progress:
            for plan in missing:
                fetch_photos([photo.id for photo in plan.photos], self._folder, source, requests)
                part = pack_shard(plan, self._folder, self._dataset, self._options.size, pool)
                file, key = self._dataset / plan.file, f"{self._prefix}{plan.file}"
                upload_file(self._s3, file, self._bucket, key)
                self._board.write(_part_name(plan), to_json(asdict(part)))
                progress.update(len(plan.photos))

    def _find_part(self, plan: ShardPlan, written: set[str]) -> Part | None:
        """Return the part of a shard that is in our bucket; None if that shard is another one,
        made with other settings."""
        if _part_name(plan) not in written:
            return None
        part = read_part(self._board.read(_part_name(plan)))
        found = stored(self._s3, self._bucket, f"{self._prefix}{plan.file}")
        return part if found == (part.shard.bytes, part.shard.sha256) else None

    def _wait_for_part(self, plan: ShardPlan) -> Part:
        """Wait until another machine has uploaded its shard."""
        while (part := self._find_part(plan, {_part_name(plan)})) is None:
            time.sleep(LOOK_SECONDS)
        return part

    def join(self, split: Split, plans: Sequence[ShardPlan]) -> None:
        """Write and upload the lists and the manifest, once every shard exists."""
        self._board.wait_for(map(_part_name, plans), "shards")
        parts = [self._wait_for_part(plan) for plan in plans]
        options = self._options
        join(
            self._dataset,
            split,
            parts,
            size=options.size,
            shard_mb=options.shard_mb,
            min_photos=options.min_photos,
        )
        upload_joined(self._s3, self._dataset, self._bucket, self._prefix)


def read_metadata(ids: Sequence[str], source: Bucket, counts: range, requests: int) -> str:
    """Read the metadata of each id; returns a line of CSV for each, with its count and products
    or the reason for leaving it out."""

    async def read(photo_id: str) -> Bin:
        content = await source.fetch(f"metadata/{photo_id}.json")
        if content is None:
            raise UnusableError(REASON_NOT_IN_BUCKET)
        return usable_bin(content, counts)

    progress: tqdm[Any] = tqdm(total=len(ids), desc="metadata", unit=" photos")
    failures = Failures()
    with progress:
        results = run(failures.each(read, ids, at_once=requests, done=lambda _: progress.update()))
    failures.check(len(ids))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    for photo_id, found in zip(ids, results, strict=True):
        if isinstance(found, str):
            writer.writerow([photo_id, "", "", found])
        else:
            writer.writerow([photo_id, found.count, json.dumps(found.asins), ""])
    return table.getvalue()


def _metadata_name(share: Share) -> str:
    return f"metadata-{share.number}-of-{share.of}.csv"


def _part_name(plan: ShardPlan) -> str:
    return f"{Path(plan.file).stem}.json"
