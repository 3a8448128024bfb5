"""Which photos of the public bucket: a list, what the bucket has, or a sample of either."""

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
    """Ids of a text file, one a line, or of JSON like `file_list.json`: count → list of
    `data/metadata/<id>.json`. Each once, in their order.

    Raises DataError when the file is absent or built otherwise.
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
    """Ids of all photos that have metadata in the bucket, in the order of S3, page by page.

    Shows its progress: the public bucket has more than 500 pages, one request after the other.
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
    """The photos in the order of a hash of their ids, so that the first ones are a sample of all.

    Neighbours of the public bucket show the same products. A sample is the same each time, and a
    larger one of the same photos has all of a smaller one.
    """
    # The prefix makes it another hash than the split's, which would put a sample on one side.
    return sorted(
        photos, key=lambda photo: hashlib.sha256(f"sample-{id_of(photo)}".encode()).digest()
    )
