"""The split photos → WebDataset shards, lists and a manifest, the same bytes each time."""

import hashlib
import io
import json
import platform
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import PIL
from PIL import ExifTags, Image
from tqdm import tqdm

from data_prep.folder import (
    REASON_BROKEN_PHOTO,
    LeftOut,
    dataset_path,
    photo_path,
    to_json,
    write_atomic,
)
from data_prep.processes import process_pool
from data_prep.split import SIDES, Photo, Side, Split, check_enough, read_split
from serving.preprocess import PhotoError, to_pixels

JPEG_QUALITY = 95
FULL_COLOUR = 0  # Pillow's number for chroma that is not subsampled: benchmarks/SERVING.md says why
PHOTOS_A_TASK = 32  # keeps the talk between the processes small beside the decoding
TAR_BYTES_A_SAMPLE = 2048  # two headers, the label, and padding

Sample = tuple[Photo, bytes]  # a photo and its JPEG


@dataclass(frozen=True)
class Shard:
    """One tar file, as the manifest describes it."""

    file: str
    photos: int
    bytes: int
    sha256: str


def pack(
    folder: Path,
    name: str,
    *,
    size: int = 224,
    shard_mb: float = 100,
    workers: int | None = None,
    min_photos: int = 1,
) -> dict[str, Any]:
    """Pack the photos of `split.json` into `<folder>/datasets/<name>/`; returns the manifest.

    Photos that cannot be decoded are left out. Raises DataError when too little is left.
    """
    split = read_split(folder)
    dataset = dataset_path(folder, name)
    dataset.mkdir(parents=True, exist_ok=True)
    # Without a manifest the folder is not complete: none may stand while shards change.
    (dataset / "manifest.json").unlink(missing_ok=True)
    broken: list[LeftOut] = []
    shards: dict[Side, list[Shard]] = {"train": [], "test": []}
    with process_pool(workers) as pool, tqdm(desc="pack", unit=" photos") as progress:
        progress.reset(len(split.photos))
        for side in SIDES:
            photos = [photo for photo in split.photos if photo.side == side]
            paths = [photo_path(folder, photo.id) for photo in photos]
            encoded = pool.map(partial(encode, size=size), paths, chunksize=PHOTOS_A_TASK)
            samples = _readable(zip(photos, encoded, strict=True), broken, progress)
            for number, batch in enumerate(_cut(samples, shard_mb * 1e6)):
                shards[side].append(_write_shard(dataset / f"{side}-{number:05d}.tar", batch))
    gone = {one.id for one in broken}
    packed = [photo for photo in split.photos if photo.id not in gone]
    check_enough(packed, split.counts, min_photos)
    _remove_others(dataset, shards)
    for side in SIDES:
        names = _list_names(packed, side, split.counts)
        write_atomic(dataset / f"{side}_list.json", to_json(names))
    manifest = _manifest(name, size, split, packed, broken, shards)
    write_atomic(dataset / "manifest.json", to_json(manifest))
    return manifest


def encode(path: Path, size: int) -> bytes | None:
    """A photo as JPEG of `size` × `size`: as it is where it fits, else squashed once.

    None when it cannot be decoded.
    """
    photo = path.read_bytes()
    try:
        pixels = to_pixels(photo, size)
    except PhotoError:
        return None
    with Image.open(io.BytesIO(photo)) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size)) and upright:
            return photo
    squashed = io.BytesIO()
    Image.fromarray(pixels).save(squashed, "JPEG", quality=JPEG_QUALITY, subsampling=FULL_COLOUR)
    return squashed.getvalue()


def _readable(
    encoded: Iterable[tuple[Photo, bytes | None]], broken: list[LeftOut], progress: "tqdm[Any]"
) -> Iterator[Sample]:
    """Pass on what could be decoded; the rest is added to `broken`."""
    for photo, jpeg in encoded:
        progress.update()
        if jpeg is None:
            broken.append(LeftOut(photo.id, REASON_BROKEN_PHOTO))
        else:
            yield photo, jpeg


def _cut(samples: Iterable[Sample], shard_bytes: float) -> Iterator[list[Sample]]:
    """Cut into batches of about `shard_bytes`, at least one sample each."""
    batch: list[Sample] = []
    total = 0
    for sample in samples:
        sample_bytes = len(sample[1]) + TAR_BYTES_A_SAMPLE
        if batch and total + sample_bytes > shard_bytes:
            yield batch
            batch, total = [], 0
        batch.append(sample)
        total += sample_bytes
    if batch:
        yield batch


def _write_shard(path: Path, samples: list[Sample]) -> Shard:
    """Write one tar file in the layout of WebDataset: `<id>.jpg`, then `<id>.json`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for photo, jpeg in samples:
            label = json.dumps({"count": photo.count, "group": photo.group}).encode()
            for suffix, content in (("jpg", jpeg), ("json", label)):
                entry = tarfile.TarInfo(f"{photo.id}.{suffix}")  # mtime 0, owner 0, mode 0644
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    content = buffer.getvalue()
    write_atomic(path, content)
    return Shard(path.name, len(samples), len(content), hashlib.sha256(content).hexdigest())


def _remove_others(dataset: Path, shards: dict[Side, list[Shard]]) -> None:
    """Remove the shards of an earlier packing that had more of them."""
    current = {shard.file for listed in shards.values() for shard in listed}
    for side in SIDES:
        for file in dataset.glob(f"{side}-*.tar"):
            if file.name not in current:
                file.unlink()


def _list_names(photos: list[Photo], side: Side, counts: list[int]) -> dict[str, list[str]]:
    """Count → names, built like the public `file_list.json`."""
    return {
        str(count): [
            f"data/metadata/{photo.id}.json"
            for photo in photos
            if photo.side == side and photo.count == count
        ]
        for count in counts
    }


def _manifest(
    name: str,
    size: int,
    split: Split,
    packed: list[Photo],
    broken: list[LeftOut],
    shards: dict[Side, list[Shard]],
) -> dict[str, Any]:
    left_out = sorted([*split.left_out, *broken])
    there = Counter((photo.side, photo.count) for photo in packed)
    return {
        "name": name,
        "size": size,
        "counts": split.counts,
        "split": {"method": "group", "test_fraction": split.test_fraction},
        "shards": {side: [asdict(shard) for shard in shards[side]] for side in SIDES},
        "photos": {
            side: {str(count): there[side, count] for count in split.counts} for side in SIDES
        },
        "left_out": {
            "total": len(left_out),
            "reasons": dict(sorted(Counter(one.reason for one in left_out).items())),
            "photos": [asdict(one) for one in left_out],
        },
        "versions": {
            "python": platform.python_version(),
            "pillow": PIL.__version__,
            "numpy": numpy.__version__,
        },
    }
