"""A stand-in for the public bucket with drawn bins, and ours beside it, over HTTP."""

import hashlib
from pathlib import Path
from typing import Any

import boto3

from data_prep.synthetic import synthesize

PUBLIC, OURS = "aft-vbi-pds", "ours"


def put_bins(folder: Path, photos: int, ours: str = OURS) -> tuple[Any, list[str]]:
    """Make both buckets, and draw bins into the public one; returns the client and their ids."""
    client = boto3.client("s3")
    for bucket in (PUBLIC, ours):
        client.create_bucket(Bucket=bucket, ACL="public-read")
    synthesize(folder, photos, 3, sides=range(64, 81), workers=1)
    for file in folder.glob("*/*"):
        key = f"{file.parent.name}/{file.name}"
        client.put_object(Bucket=PUBLIC, Key=key, Body=file.read_bytes(), ACL="public-read")
    return client, sorted(file.stem for file in (folder / "metadata").iterdir())


def uploaded(s3: Any, ours: str = OURS) -> dict[str, str]:
    """Hash of each object of the data set in our bucket, by name."""
    found = s3.list_objects_v2(Bucket=ours, Prefix="datasets/").get("Contents", [])
    return {
        item["Key"].rsplit("/", 1)[1]: hashlib.sha256(
            s3.get_object(Bucket=ours, Key=item["Key"])["Body"].read()
        ).hexdigest()
        for item in found
    }
