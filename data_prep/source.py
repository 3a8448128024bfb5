"""Select photos of the public bucket: a list, all of the bucket, or a sample of either."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from tqdm import tqdm

from data_prep.folder import DataError
from data_prep.objects import PUBLIC_BUCKET, PUBLIC_REGION

T = TypeVar("T")
PUBLIC_PHOTOS = 535_234  # https://registry.opendata.aws/amazon-bin-imagery/


def read_list(path: Path) -> list[str]:
    """Read ids from a text file with one id per line, or from JSON: count → list of
    `data/metadata/<id>.json`. Returns each id once, in the order of the file.

    Raises DataError if the file is absent or has another format.
    """
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--list {path}: {getattr(error, 'strerror', 'not text')}") from error
    if not content.lstrip().startswith(("{", "[")):
        lines = (line.strip() for line in content.splitlines())
        return list(dict.fromkeys(line for line in lines if line))
    return _ids_of_json(path, content)


def _ids_of_json(path: Path, content: str) -> list[str]:
    try:
        lists = json.loads(content)
    except ValueError as error:
        raise DataError(f"--list {path}: not JSON ({error})") from error
    ids: dict[str, None] = {}  # an ordered set
    for names in lists.values() if isinstance(lists, dict) else [None]:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"--list {path}: expected count → list of names, "
                'as in {"1": ["data/metadata/<id>.json", …], "2": […]}'
            )
        ids |= dict.fromkeys(PurePosixPath(name).stem for name in names)
    return list(ids)


def list_bucket(bucket: str) -> Iterator[str]:
    """Yield the ids of all photos that have metadata in the bucket, in the order of S3.

    Shows a progress bar: the public bucket takes more than 500 requests, one after the other.
    """
    config = Config(signature_version=UNSIGNED, retries={"mode": "standard", "max_attempts": 10})
    client = boto3.client("s3", region_name=PUBLIC_REGION, config=config)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="metadata/")
    total = PUBLIC_PHOTOS if bucket == PUBLIC_BUCKET else None
    with tqdm(total=total, desc="list", unit=" photos") as progress:
        for page in pages:
            for item in page.get("Contents", []):
                path = PurePosixPath(item["Key"])
                if path.suffix == ".json" and path.parent.name == "metadata":
                    progress.update()
                    yield path.stem
        progress.total = progress.n  # it may hold fewer


def spread(photos: Iterable[T], id_of: Callable[[T], str] = str) -> list[T]:
    """Sort the photos by a hash of their ids, so that the first N are a sample.

    Neighbours in the public bucket show the same products. Samples are reproducible, and a larger
    sample contains a smaller one.
    """
    # Without the prefix it would be the split's hash, and a sample would be on one side.
    return sorted(
        photos, key=lambda photo: hashlib.sha256(f"sample-{id_of(photo)}".encode()).digest()
    )
