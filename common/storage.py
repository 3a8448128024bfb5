"""Folders to and from the bucket."""

import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import replacing

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client


def list_keys(s3: "S3Client", bucket: str, prefix: str) -> list[str]:
    """All keys under `prefix`, sorted."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


def download_prefix(
    s3: "S3Client",
    bucket: str,
    prefix: str,
    folder: Path,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> int:
    """Copy every object under `prefix` to `folder`; returns how many."""
    keys = list_keys(s3, bucket, prefix)
    for key in keys:
        before_each()
        download_object(s3, bucket, key, folder / key.removeprefix(prefix))
    return len(keys)


def pack_files(archive: Path, files: Iterable[Path]) -> None:
    """Write a .tar.gz of `files`, folders with all that is in them, by their names: complete or
    absent."""
    with replacing(archive) as partial, tarfile.open(partial, "w:gz") as tar:
        for file in files:
            tar.add(file, arcname=file.name)


def download_object(s3: "S3Client", bucket: str, key: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    s3.download_file(bucket, key, str(file))
