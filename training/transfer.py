"""Folders to and from the bucket."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client


def list_keys(s3: "S3Client", bucket: str, prefix: str) -> list[str]:
    """All keys under `prefix`, sorted."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


def download_prefix(s3: "S3Client", bucket: str, prefix: str, folder: Path) -> int:
    """Copy every object under `prefix` to `folder`; returns how many."""
    keys = list_keys(s3, bucket, prefix)
    for key in keys:
        _download(s3, bucket, key, folder / key.removeprefix(prefix))
    return len(keys)


class CheckpointStore:
    """A run's checkpoint folder, kept in checkpoints/<run-id>/<attempt>/.

    Each attempt writes under its own prefix, so that no machine overwrites another's files.
    """

    def __init__(self, s3: "S3Client", bucket: str, run_id: str, folder: Path) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = f"checkpoints/{run_id}/"
        self._folder = folder
        self._stored: dict[Path, int] = {}

    def restore(self) -> int:
        """Fetch what earlier attempts stored, the later attempt's file where two have one name;
        returns the number of files."""
        newest = {
            PurePosixPath(*PurePosixPath(key.removeprefix(self._prefix)).parts[1:]): key
            for key in list_keys(self._s3, self._bucket, self._prefix)
        }
        for name, key in newest.items():
            file = self._folder / name
            _download(self._s3, self._bucket, key, file)
            self._stored[file] = file.stat().st_mtime_ns
        return len(newest)

    def store(self, attempt: int) -> int:
        """Upload files that are new or changed since the last call; returns how many."""
        changed = 0
        for file in sorted(self._folder.rglob("[!.]*")):
            if not file.is_file():
                continue
            try:
                modified = file.stat().st_mtime_ns
                if self._stored.get(file) != modified:
                    name = file.relative_to(self._folder).as_posix()
                    key = f"{self._prefix}{attempt:03d}/{name}"
                    self._s3.upload_file(str(file), self._bucket, key)
                    self._stored[file] = modified
                    changed += 1
            except FileNotFoundError:
                continue  # an old snapshot, removed by the training process in the meantime
        return changed


def _download(s3: "S3Client", bucket: str, key: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    s3.download_file(bucket, key, str(file))
