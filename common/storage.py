"""Transfers of files and folders between this machine and the bucket."""

import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import replacing

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef


def list_objects(s3: "S3Client", bucket: str, prefix: str) -> "Iterator[ObjectTypeDef]":
    """Yield all objects under `prefix`, with their size and time, as ListObjectsV2 has them."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return (item for page in pages for item in page.get("Contents", []))


def list_keys(s3: "S3Client", bucket: str, prefix: str) -> list[str]:
    """Return all keys under `prefix`, sorted."""
    return sorted(item["Key"] for item in list_objects(s3, bucket, prefix))


def download_prefix(
    s3: "S3Client",
    bucket: str,
    prefix: str,
    folder: Path,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> int:
    """Download every object under `prefix` to `folder`; return their number.

    `before_each` is called before each download.
    """
    keys = list_keys(s3, bucket, prefix)
    for key in keys:
        before_each()
        download_object(s3, bucket, key, folder / key.removeprefix(prefix))
    return len(keys)


def pack_files(archive: Path, files: Iterable[Path]) -> None:
    """Write `archive`, a .tar.gz of `files`, which is complete or absent.

    A folder among `files` is added with its contents. Each member is named after its file.
    """
    with replacing(archive) as partial, tarfile.open(partial, "w:gz") as tar:
        for file in files:
            tar.add(file, arcname=file.name)


def download_object(s3: "S3Client", bucket: str, key: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    s3.download_file(bucket, key, str(file))
