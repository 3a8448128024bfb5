"""A packed dataset → `s3://<our bucket>/datasets/<name>/`, the manifest last."""

from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError
from tqdm import tqdm

from data_prep.folder import DataError, dataset_path, read_json, sha256_of
from data_prep.split import SIDES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ABSENT = {"404", "403"}  # the latter is S3's answer to those who may not list the bucket


def upload_dataset(folder: Path, name: str, bucket: str) -> str:
    """Upload the dataset `<folder>/datasets/<name>/`; returns its URI.

    Files whose bytes the bucket already has are skipped. The manifest goes last, and an
    older one goes first: a dataset that has a manifest is complete.
    Raises DataError when a shard is not the one of the manifest.
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
    prefix = f"datasets/{name}"
    manifest_file, manifest_key = dataset / "manifest.json", f"{prefix}/manifest.json"
    ours = manifest_file.stat().st_size, sha256_of(manifest_file)
    if stored(client, bucket, manifest_key) != ours:
        client.delete_object(Bucket=bucket, Key=manifest_key)
    for file in files:
        upload_file(client, file, bucket, f"{prefix}/{file.name}")
    upload_joined(client, dataset, bucket, f"{prefix}/")
    return f"s3://{bucket}/{prefix}/"


def upload_joined(client: "S3Client", dataset: Path, bucket: str, prefix: str) -> None:
    """Upload what describes the shards: the lists, and the manifest last."""
    for name in (*(f"{side}_list.json" for side in SIDES), "manifest.json"):
        upload_file(client, dataset / name, bucket, f"{prefix}{name}")


def upload_weights(file: Path, bucket: str) -> str:
    """Upload a backbone's weights; returns their URI."""
    key = f"weights/{file.name}"
    upload_file(boto3.client("s3"), file, bucket, key)
    return f"s3://{bucket}/{key}"


def upload_file(client: "S3Client", file: Path, bucket: str, key: str) -> None:
    """Upload one file with a progress bar, unless the bucket has the same bytes."""
    sha256 = sha256_of(file)
    if stored(client, bucket, key) == (file.stat().st_size, sha256):
        return
    with tqdm(
        total=file.stat().st_size, desc=f"upload {file.name}", unit="B", unit_scale=True
    ) as progress:
        client.upload_file(
            str(file),
            bucket,
            key,
            ExtraArgs={"Metadata": {"sha256": sha256}},
            Callback=progress.update,
        )


def stored(client: "S3Client", bucket: str, key: str) -> tuple[int, str | None] | None:
    """Size and SHA-256 of what `upload_file` left; None without such an object."""
    try:
        found = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None
        raise
    return found["ContentLength"], found["Metadata"].get("sha256")
