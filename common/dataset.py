"""Reads a packed data set from disk: its manifest, and photos from its shards."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["train", "test"]
REQUIRED_KEYS = {"name", "size", "counts", "shards"}  # of a manifest


class DatasetError(ValueError):
    """The data set is missing, damaged, or too small; the message is one line."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo as packed: its JPEG, and its label."""

    id: str
    jpeg: bytes
    count: int
    group: str  # of bins that share products
    products: list[dict[str, Any]] = field(default_factory=list)  # see data_prep/products.py


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder with `manifest.json` and the shards that it lists, made by `data_prep pack`."""

    folder: Path
    manifest: dict[str, Any]
    manifest_sha256: str

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def size(self) -> int:
        """Height and width of the photos, in pixels."""
        return int(self.manifest["size"])

    @property
    def counts(self) -> list[int]:
        """The counts that occur, in ascending order; class k of a model is the k-th of them."""
        return [int(count) for count in self.manifest["counts"]]

    def index(self, *sides: Side) -> "PhotoIndex":
        """Index the photos of `sides` for random access, in the order of the shards.

        Raises DatasetError if a shard is missing or damaged.
        """
        return PhotoIndex(
            [
                entry
                for side in sides
                for file, tar in self._open_shards(side)
                for entry in _read_entries(tar, file)
            ]
        )

    def photos(self, side: Side) -> Iterator[Photo]:
        """Yield every photo of one side, in the order of the shards.

        Raises DatasetError if a shard is missing or damaged.
        """
        for _, tar in self._open_shards(side):
            yield from read_photos(tar)

    def _open_shards(self, side: Side) -> Iterator[tuple[Path, tarfile.TarFile]]:
        for shard in self.manifest["shards"][side]:
            file = self.folder / str(shard["file"])
            with _open_shard(file, str(shard["sha256"])) as tar:
                yield file, tar


def open_dataset(folder: Path) -> Dataset:
    """Read the manifest in `folder`; raises DatasetError if it is missing or damaged."""
    file = folder / "manifest.json"
    try:
        content = file.read_bytes()
        manifest = json.loads(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"no data set in {folder}: manifest.json is missing") from error
    except ValueError as error:
        raise DatasetError(f"{file} is damaged: {error}") from error
    if not isinstance(manifest, dict) or REQUIRED_KEYS - manifest.keys():
        raise DatasetError(f"{file} is not the manifest of a packed data set")
    return Dataset(
        folder=folder, manifest=manifest, manifest_sha256=hashlib.sha256(content).hexdigest()
    )


def _open_shard(file: Path, sha256: str) -> tarfile.TarFile:
    try:
        # tarfile reads a truncated archive as a shorter one, without an error.
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise DatasetError(f"shard {file} is damaged: download the data set again")
        return tarfile.open(file)
    except FileNotFoundError as error:
        raise DatasetError(f"shard {file} is missing: download the data set again") from error


def read_photos(shard: tarfile.TarFile) -> Iterator[Photo]:
    """Yield the photos of an open shard in their order; `shard` may be a stream ("r|").

    Raises DatasetError when a photo's labels do not follow its JPEG.
    """
    jpeg_id, jpeg = "", b""
    for member in shard:
        photo_id, _, suffix = member.name.partition(".")
        extracted = shard.extractfile(member)
        content = extracted.read() if extracted else b""
        if suffix == "jpg":
            jpeg_id, jpeg = photo_id, content
        elif suffix == "json":
            if jpeg_id != photo_id:
                raise DatasetError(f"photo {photo_id} has labels but no JPEG before them")
            label = json.loads(content)
            count, group = int(label["count"]), str(label["group"])
            yield Photo(photo_id, jpeg, count, group, label.get("products", []))


@dataclass(frozen=True, slots=True)
class Entry:
    """One photo's labels, and the position of its JPEG."""

    id: str
    count: int
    group: str
    file: Path
    offset: int  # in the file, in bytes
    size: int  # in bytes
    products: list[dict[str, Any]]  # see data_prep/products.py


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
                label.get("products", []),
            )


class PhotoIndex:
    """Random access to the photos of a data set by row, without unpacking the shards."""

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

    @property
    def products(self) -> list[list[dict[str, Any]]]:
        return [entry.products for entry in self.entries]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Counts, int64 [photos]."""
        return np.array([entry.count for entry in self.entries], np.int64)

    def subset(self, rows: NDArray[np.bool_]) -> "PhotoIndex":
        """Return the photos for which `rows`, bool [photos], is true."""
        return PhotoIndex(
            [entry for entry, wanted in zip(self.entries, rows, strict=True) if wanted]
        )

    def jpeg(self, row: int) -> bytes:
        """Read the bytes of one photo; thread-safe."""
        entry = self.entries[row]
        with entry.file.open("rb", buffering=0) as stream:
            stream.seek(entry.offset)
            return stream.read(entry.size)


def in_validation(group: str, fraction: float) -> bool:
    """Whether a product group of the training side belongs to the validation set.

    The hash of its name decides, so adding photos moves no group.
    """
    digest = hashlib.sha256(f"validation:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
