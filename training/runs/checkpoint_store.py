"""A run's checkpoints in the bucket."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from common.storage import download_object, list_keys
from training.settings import CHECKPOINTS_KEPT

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client

CHECKPOINTS = "checkpoint-*.pt"  # as training.learn.checkpoint names them, in their order
NAME = "name"  # metadata of an object: the file's name


class CheckpointStore:
    """Copies a run's checkpoint folder to and from checkpoints/<run-id>/<attempt>/.

    Each attempt has its own prefix, so no machine overwrites another's files. For each folder, an
    attempt keeps the last CHECKPOINTS_KEPT checkpoints and reuses their keys in turn: a machine
    has no permission to delete, and hundreds of checkpoints would cost more than the training.
    """

    def __init__(self, s3: "S3Client", bucket: str, run_id: str, folder: Path) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = f"checkpoints/{run_id}/"
        self._folder = folder
        self._stored: dict[Path, int] = {}
        self._uploads: Counter[Path] = Counter()  # checkpoints stored so far, by folder

    def restore(self, *, before_each: Callable[[], None] = lambda: None) -> int:
        """Download the files of earlier attempts; return their number.

        Of files with the same name, the latest attempt's is taken; of each folder's checkpoints,
        the newest CHECKPOINTS_KEPT by attempt and name. `before_each` is called before each file.
        """
        newest: dict[PurePosixPath, str] = {}
        checkpoints: defaultdict[PurePosixPath, dict[PurePosixPath, tuple[str, str]]]
        checkpoints = defaultdict(dict)
        for key in list_keys(self._s3, self._bucket, self._prefix):
            attempt, *parts = PurePosixPath(key.removeprefix(self._prefix)).parts
            name = PurePosixPath(*parts)
            if name.match(CHECKPOINTS):
                name = name.with_name(self._name_of(key))
                checkpoints[name.parent][name] = attempt, key
            else:
                newest[name] = key
        for found in checkpoints.values():
            latest = sorted(found, key=lambda name: (found[name][0], name))[-CHECKPOINTS_KEPT:]
            newest |= {name: found[name][1] for name in latest}
        for name, key in newest.items():
            before_each()
            file = self._folder / name
            download_object(self._s3, self._bucket, key, file)
            self._stored[file] = file.stat().st_mtime_ns
        return len(newest)

    def store(self, attempt: int) -> int:
        """Upload files that are new or changed since the last call; return their number."""
        changed = 0
        for file in sorted(self._folder.rglob("[!.]*")):
            if not file.is_file():
                continue
            try:
                modified = file.stat().st_mtime_ns
                if self._stored.get(file) != modified:
                    self._upload(file, attempt)
                    self._stored[file] = modified
                    changed += 1
            except FileNotFoundError:
                continue  # the training process has deleted an old checkpoint
        return changed

    def _upload(self, file: Path, attempt: int) -> None:
        name = file.relative_to(self._folder)
        metadata = {}
        if name.match(CHECKPOINTS):
            metadata[NAME] = file.name
            name = name.with_name(f"checkpoint-{self._uploads[name.parent] % CHECKPOINTS_KEPT}.pt")
        key = f"{self._prefix}{attempt:03d}/{name.as_posix()}"
        self._s3.upload_file(str(file), self._bucket, key, ExtraArgs={"Metadata": metadata})
        if metadata:
            self._uploads[name.parent] += 1  # after the upload: a failed one is repeated

    def _name_of(self, key: str) -> str:
        return self._s3.head_object(Bucket=self._bucket, Key=key)["Metadata"][NAME]
