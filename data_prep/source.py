"""Which photos of the public bucket: a list, or what the bucket has."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from data_prep.folder import DataError
from data_prep.objects import PUBLIC_REGION


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
    """Ids of all photos that have metadata in the bucket, in the order of S3, page by page."""
    config = Config(signature_version=UNSIGNED, retries={"mode": "standard", "max_attempts": 10})
    client = boto3.client("s3", region_name=PUBLIC_REGION, config=config)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="metadata/")
    for page in pages:
        for item in page.get("Contents", []):
            path = PurePosixPath(item["Key"])
            if path.suffix == ".json" and path.parent.name == "metadata":
                yield path.stem
