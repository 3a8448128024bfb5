"""The public bucket → the working folder, many requests at a time, resumable."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from tqdm import tqdm

from data_prep.folder import (
    REASON_NO_PHOTO,
    REASON_NOT_IN_BUCKET,
    REASON_OUT_OF_RANGE,
    DataError,
    LeftOut,
    MetadataError,
    metadata_path,
    parse_metadata,
    photo_path,
    start_selection,
    write_atomic,
    write_selection,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PUBLIC_BUCKET = "aft-vbi-pds"  # the Amazon Bin Image Dataset
PUBLIC_REGION = "us-east-1"
THREADS = 16
BATCH = 10_000  # bounds the memory that waiting requests take


def public_client(threads: int = THREADS) -> "S3Client":
    """An anonymous client; AWS_ENDPOINT_URL points it elsewhere."""
    config = Config(
        signature_version=UNSIGNED,
        max_pool_connections=threads,
        tcp_keepalive=True,
        retries={"mode": "standard", "max_attempts": 5},
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", region_name=PUBLIC_REGION, config=config)


def read_list(path: Path) -> list[str]:
    """Ids of a file like `file_list.json`: count → list of `data/metadata/<id>.json`.

    Raises DataError when the file is absent or built otherwise.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"--list {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"--list {path}: not JSON ({error})") from error
    lists = list(content.values()) if isinstance(content, dict) else [None]
    ids: dict[str, None] = {}  # an ordered set
    for names in lists:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"--list {path}: expected count → list of names, "
                'as in {"1": ["data/metadata/<id>.json", …], "2": […]}'
            )
        ids |= dict.fromkeys(PurePosixPath(name).stem for name in names)
    return list(ids)


def list_bucket(client: "S3Client", bucket: str) -> Iterator[str]:
    """Ids of all photos that have metadata in the bucket, in the order of S3."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="metadata/")
    for page in pages:
        for item in page.get("Contents", []):
            path = PurePosixPath(item["Key"])
            if path.suffix == ".json" and path.parent.name == "metadata":
                yield path.stem


def download(
    ids: Iterable[str],
    folder: Path,
    counts: range,
    *,
    bucket: str = PUBLIC_BUCKET,
    limit: int | None = None,
    threads: int = THREADS,
) -> tuple[list[str], list[LeftOut]]:
    """Fetch metadata, and the photo where the count is in `counts`, of each id.

    Files that are already there are not fetched again. With `limit` it stops after that
    many photos, taking the ids in their order. Writes `selection.json`; returns the ids
    that are in the folder now, and those left out.
    """
    start_selection(folder)
    client = public_client(threads)
    waiting = iter(ids)
    total = limit if limit is not None else len(ids) if isinstance(ids, list) else None
    photos: list[str] = []
    left_out: list[LeftOut] = []

    def fetch_one(photo_id: str) -> LeftOut | str:
        reason = _fetch(client, bucket, folder, photo_id, counts)
        return LeftOut(photo_id, reason) if reason else photo_id

    executor = ThreadPoolExecutor(threads)
    try:
        with tqdm(total=total, desc="download", unit=" photos") as progress:
            # A batch never asks for more than is still wanted, so `limit` is met exactly.
            while batch := list(islice(waiting, _batch_size(limit, len(photos)))):
                for outcome in executor.map(fetch_one, batch):
                    if isinstance(outcome, LeftOut):
                        left_out.append(outcome)
                        progress.set_postfix(left_out=len(left_out), refresh=False)
                    else:
                        photos.append(outcome)
                    progress.update(isinstance(outcome, str) or limit is None)
            progress.total = progress.n  # the bucket may hold fewer than `limit`
    finally:
        executor.shutdown(cancel_futures=True)
    write_selection(folder, photos, left_out)
    return photos, left_out


def _batch_size(limit: int | None, done: int) -> int:
    return BATCH if limit is None else min(BATCH, limit - done)


def _fetch(
    client: "S3Client", bucket: str, folder: Path, photo_id: str, counts: range
) -> str | None:
    """Fetch one photo and its metadata; returns the reason when it is left out."""
    metadata, photo = metadata_path(folder, photo_id), photo_path(folder, photo_id)
    if not _fetch_object(client, bucket, f"metadata/{photo_id}.json", metadata):
        return REASON_NOT_IN_BUCKET
    try:
        if parse_metadata(metadata.read_bytes()).count not in counts:
            return REASON_OUT_OF_RANGE
    except MetadataError as error:
        return str(error)
    if not _fetch_object(client, bucket, f"bin-images/{photo_id}.jpg", photo):
        return REASON_NO_PHOTO
    return None


def _fetch_object(client: "S3Client", bucket: str, key: str, path: Path) -> bool:
    """Fetch an object unless the file is there; False when the bucket does not have it."""
    if path.exists():
        return True
    try:
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return False
    except ClientError as error:
        code = error.response["Error"]["Code"]
        raise DataError(
            f"s3://{bucket}/{key}: {code}: {error.response['Error']['Message']}"
        ) from error
    write_atomic(path, content)
    return True
