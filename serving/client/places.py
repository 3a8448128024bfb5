"""Files, folders, URLs and S3 prefixes → the name of each photo."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import boto3
from tqdm import tqdm

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")


class NoPhotosError(ValueError):
    """There is no photo at a place; the message is one line."""


def photo_names(places: Sequence[str]) -> list[str]:
    """Each photo once; folders and S3 prefixes contribute all photos below them, by name.

    ImagePredictor.predict accepts these names. Raises NoPhotosError, botocore's errors.
    """
    names: dict[str, None] = {}
    for place in places:
        found = list(_names_at(place))
        if not found:
            suffixes = ", ".join(PHOTO_SUFFIXES)
            raise NoPhotosError(f"{place}: there is no photo ({suffixes})")
        names |= dict.fromkeys(found)
    return list(names)


def _names_at(place: str) -> Iterator[str]:
    if place.startswith("s3://") and not _is_photo(place):
        yield from _objects(place)
    elif Path(place).is_dir():
        files = (file for file in Path(place).rglob("*") if file.is_file())
        yield from sorted(str(file) for file in files if _is_photo(file.name))
    else:
        yield place


def _objects(prefix: str) -> Iterator[str]:
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
    for page in tqdm(pages, desc=f"listing {prefix}", unit="page", delay=1, leave=False):
        for item in page.get("Contents", []):
            if _is_photo(item["Key"]):
                yield f"s3://{bucket}/{item['Key']}"


def _is_photo(name: str) -> bool:
    return name.lower().endswith(PHOTO_SUFFIXES)
