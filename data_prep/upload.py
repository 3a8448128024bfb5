"""Upload a packed data set to `s3://<our bucket>/datasets/<name>/`, the manifest last."""

from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError
from tqdm import tqdm

from data_prep.folder import DataError, dataset_path, read_json, sha256_of
from data_prep.split import SIDES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ABSENT = {"404", "403"}  # S3 answers 403 to those who may not list the bucket


def upload_dataset(folder: Path, name: str, bucket: str) -> str:
    """Upload the data set `<folder>/datasets/<name>/`; returns its URI.

    Files whose bytes the bucket already has are skipped. A data set with a manifest is complete,
    so an older manifest is deleted first, and the new one is uploaded last.
    Raises DataError if a shard is not the one that the manifest describes.
    """
    dataset = dataset_path(folder, name)
    hint = f"run `python -m data_prep pack --name {name}` first"
    manifest = read_json(dataset / "manifest.json", hint)
    shards = [shard for side in SIDES for shard in manifest["shards"][side]]
    files = [dataset / shard["file"] for shard in shards]
    for file, shard in zip(files, shards, strict=True):
        if not file.exists() or sha256_of(file) != shard["sha256"]:
            raise DataError(f"{file} is not the shard that the manifest describes: {hint}")
    client = boto3.client("s3")
    prefix = f"datasets/{name}/"
    file, key = dataset / "manifest.json", f"{prefix}manifest.json"
    if stored(client, bucket, key) != (file.stat().st_size, sha256_of(file)):
        client.delete_object(Bucket=bucket, Key=key)
    for file in files:
        upload_file(client, file, bucket, f"{prefix}{file.name}")
    upload_joined(client, dataset, bucket, prefix)
    return f"s3://{bucket}/{prefix}"


def upload_joined(client: "S3Client", dataset: Path, bucket: str, prefix: str) -> None:
    """Upload the lists, and then the manifest."""
    for name in (*(f"{side}_list.json" for side in SIDES), "manifest.json"):
        upload_file(client, dataset / name, bucket, f"{prefix}{name}")


def upload_weights(file: Path, bucket: str) -> str:
    """Upload the weights of a backbone; returns their URI."""
    key = f"weights/{file.name}"
    upload_file(boto3.client("s3"), file, bucket, key)
    return f"s3://{bucket}/{key}"


def upload_file(client: "S3Client", file: Path, bucket: str, key: str) -> None:
    """Upload one file with a progress bar, unless the bucket has the same bytes."""
    size, sha256, desc = file.stat().st_size, sha256_of(file), f"upload {file.name}"
    if stored(client, bucket, key) == (size, sha256):
        return
    with tqdm(total=size, desc=desc, unit="B", unit_scale=True) as progress:
        client.upload_file(
            str(file),
            bucket,
            key,
            ExtraArgs={"Metadata": {"sha256": sha256}},
            Callback=progress.update,
        )


def stored(client: "S3Client", bucket: str, key: str) -> tuple[int, str | None] | None:
    """Return the size and the SHA-256 of an uploaded file; None without such an object."""
    try:
        found = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None
        raise
    return found["ContentLength"], found["Metadata"].get("sha256")
