"""A run's checkpoints in the bucket."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from common.storage import download_object, list_keys
from training.settings import SNAPSHOTS_KEPT

if TYPE_CHECKING:  # the type hints are not on a training machine
    from mypy_boto3_s3 import S3Client

SNAPSHOTS = "snapshot-*.pt"  # training.learn.checkpoint names and orders them
NAME = "name"  # of the file, in an object's metadata


class CheckpointStore:
    """A run's checkpoint folder, kept in checkpoints/<run-id>/<attempt>/.

    Each attempt writes under its own prefix, so that no machine overwrites another's files. Of
    each folder's snapshots an attempt keeps the last SNAPSHOTS_KEPT, under names that take turns:
    a machine may delete nothing there, and hundreds of them would cost more than the training.
    """

    def __init__(self, s3: "S3Client", bucket: str, run_id: str, folder: Path) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = f"checkpoints/{run_id}/"
        self._folder = folder
        self._stored: dict[Path, int] = {}
        self._turns: Counter[Path] = Counter()  # snapshots stored so far, by their folder

    def restore(self, *, before_each: Callable[[], None] = lambda: None) -> int:
        """Fetch what earlier attempts stored, the later attempt's file where two have one name;
        of each folder's snapshots the newest SNAPSHOTS_KEPT, by attempt and name. Returns the
        number of files."""
        newest: dict[PurePosixPath, str] = {}
        snapshots: defaultdict[PurePosixPath, dict[PurePosixPath, tuple[str, str]]]
        snapshots = defaultdict(dict)
        for key in list_keys(self._s3, self._bucket, self._prefix):
            attempt, *parts = PurePosixPath(key.removeprefix(self._prefix)).parts
            name = PurePosixPath(*parts)
            if name.match(SNAPSHOTS):
                name = name.with_name(self._name_of(key))
                snapshots[name.parent][name] = attempt, key
            else:
                newest[name] = key
        for found in snapshots.values():
            latest = sorted(found, key=lambda name: (found[name][0], name))[-SNAPSHOTS_KEPT:]
            newest |= {name: found[name][1] for name in latest}
        for name, key in newest.items():
            before_each()
            file = self._folder / name
            download_object(self._s3, self._bucket, key, file)
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
                    self._upload(file, attempt)
                    self._stored[file] = modified
                    changed += 1
            except FileNotFoundError:
                continue  # an old snapshot, removed by the training process in the meantime
        return changed

    def _upload(self, file: Path, attempt: int) -> None:
        name = file.relative_to(self._folder)
        metadata = {}
        if name.match(SNAPSHOTS):
            metadata[NAME] = file.name
            name = name.with_name(f"snapshot-{self._turns[name.parent] % SNAPSHOTS_KEPT}.pt")
        key = f"{self._prefix}{attempt:03d}/{name.as_posix()}"
        self._s3.upload_file(str(file), self._bucket, key, ExtraArgs={"Metadata": metadata})
        if metadata:
            self._turns[name.parent] += 1  # not before: the older one is whole until then

    def _name_of(self, key: str) -> str:
        return self._s3.head_object(Bucket=self._bucket, Key=key)["Metadata"][NAME]
