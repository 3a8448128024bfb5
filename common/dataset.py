"""A packed data set on disk: its manifest, and its photos one by one out of the shards."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["train", "test"]
NEEDED = {"name", "size", "counts", "shards"}  # in a manifest


class DatasetError(ValueError):
    """The data set is missing, damaged, or too small; the message is one line."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo as packed: JPEG bytes, its count, and the group of products it belongs to."""

    id: str
    jpeg: bytes
    count: int
    group: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder with `manifest.json` and the shards that it names (made by `data_prep pack`)."""

    folder: Path
    manifest: dict[str, Any]
    manifest_sha256: str

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def size(self) -> int:
        """Height and width of the photos, pixels."""
        return int(self.manifest["size"])

    @property
    def counts(self) -> list[int]:
        """The counts that occur, ascending; class k of a model is the k-th of them."""
        return [int(count) for count in self.manifest["counts"]]

    def photo_total(self, side: Side) -> int:
        return sum(int(shard["photos"]) for shard in self.manifest["shards"][side])

    def index(self, *sides: Side) -> "PhotoIndex":
        """Where each photo of `sides` lies, in the order of the shards: for reading at random.

        Raises DatasetError when a shard is missing or damaged.
        """
        entries = [entry for side in sides for entry in self._entries(side)]
        return PhotoIndex(entries)

    def _entries(self, side: Side) -> Iterator["Entry"]:
        for shard in self.manifest["shards"][side]:
            file = self.folder / str(shard["file"])
            with _open_shard(file, str(shard["sha256"])) as tar:
                yield from _read_entries(tar, file)

    def photos(self, side: Side) -> Iterator[Photo]:
        """Every photo of one side, in the order of the shards.

        Raises DatasetError when a shard is missing or damaged.
        """
        for shard in self.manifest["shards"][side]:
            with _open_shard(self.folder / str(shard["file"]), str(shard["sha256"])) as tar:
                yield from read_photos(tar)


def open_dataset(folder: Path) -> Dataset:
    """Read the manifest in `folder`; raises DatasetError when there is none or it is damaged."""
    file = folder / "manifest.json"
    try:
        content = file.read_bytes()
        manifest = json.loads(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"no data set in {folder}: manifest.json is missing") from error
    except ValueError as error:
        raise DatasetError(f"{file} is damaged: {error}") from error
    if not isinstance(manifest, dict) or NEEDED - manifest.keys():
        raise DatasetError(f"{file} is not the manifest of a packed data set")
    return Dataset(
        folder=folder, manifest=manifest, manifest_sha256=hashlib.sha256(content).hexdigest()
    )


def _open_shard(file: Path, sha256: str) -> tarfile.TarFile:
    try:
        # A tar that was cut off or overwritten reads as a shorter one, without an error.
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise DatasetError(f"shard {file} is damaged: fetch the data set again")
        return tarfile.open(file)
    except FileNotFoundError as error:
        raise DatasetError(f"shard {file} is missing: fetch the data set again") from error


def read_photos(shard: tarfile.TarFile) -> Iterator[Photo]:
    """The photos of an open shard, in its order."""
    jpeg = b""
    for member in shard:
        photo_id, _, suffix = member.name.partition(".")
        extracted = shard.extractfile(member)
        content = extracted.read() if extracted else b""
        if suffix == "jpg":
            jpeg = content
        elif suffix == "json":
            label = json.loads(content)
            yield Photo(photo_id, jpeg, int(label["count"]), str(label["group"]))


@dataclass(frozen=True, slots=True)
class Entry:
    """One photo, and where its JPEG lies."""

    id: str
    count: int
    group: str
    file: Path
    offset: int  # bytes
    size: int  # bytes


def _read_entries(shard: tarfile.TarFile, file: Path) -> Iterator[Entry]:
    jpeg = tarfile.TarInfo()
    for member in shard:
        photo_id, _, suffix = member.name.partition(".")
        if suffix == "jpg":
            jpeg = member
        elif suffix == "json":
            extracted = shard.extractfile(member)
            label = json.loads(extracted.read() if extracted else b"")
            yield Entry(
                photo_id,
                int(label["count"]),
                str(label["group"]),
                file,
                jpeg.offset_data,
                jpeg.size,
            )


class PhotoIndex:
    """Photos of a data set by row, read from their shards without unpacking them."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def ids(self) -> list[str]:
        return [entry.id for entry in self.entries]

    @cached_property
    def groups(self) -> list[str]:
        return [entry.group for entry in self.entries]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[photos]"""
        return np.array([entry.count for entry in self.entries], np.int64)

    def subset(self, rows: NDArray[np.bool_]) -> "PhotoIndex":
        """The photos for which `rows` [photos] is true."""
        return PhotoIndex(
            [entry for entry, wanted in zip(self.entries, rows, strict=True) if wanted]
        )

    def jpeg(self, row: int) -> bytes:
        """The bytes of one photo; safe to call from several threads."""
        entry = self.entries[row]
        with entry.file.open("rb", buffering=0) as stream:
            stream.seek(entry.offset)
            return stream.read(entry.size)


def in_validation(group: str, fraction: float) -> bool:
    """Whether a product group of the training side serves as validation.

    A fixed hash, so that adding photos moves no group.
    """
    digest = hashlib.sha256(f"validation:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
