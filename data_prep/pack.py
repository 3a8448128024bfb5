"""The split photos → WebDataset shards, lists and a manifest, the same bytes each time.

Which photos a shard holds is settled by the split, before any is read: shards can be packed in
any order, by any number of processes, and one that is there already is not packed again.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import PIL
from PIL import ExifTags, Image
from tqdm import tqdm

from common.files import write_atomic
from data_prep.folder import (
    REASON_BROKEN_PHOTO,
    REASON_NO_PHOTO,
    LeftOut,
    by_reason,
    dataset_path,
    photo_path,
    sha256_of,
    to_json,
)
from data_prep.processes import process_pool
from data_prep.split import SIDES, Photo, Side, Split, check_enough, read_split
from serving.container.preprocess import PhotoError, to_pixels

JPEG_QUALITY = 95
FULL_COLOUR = 0  # no chroma subsampling, by Pillow's number; why: benchmarks/serving/README.md
JPEG_BYTES_A_PIXEL = 0.5  # at that quality, about: only what a shard holds depends on it
TAR_BYTES_A_SAMPLE = 2048  # two headers, the label, and padding
PHOTOS_A_TASK = 32  # keeps the talk between the processes small beside the decoding
AHEAD = 2  # shards whose photos are decoded at once, so that writing one keeps no core waiting

Sample = tuple[Photo, bytes]  # a photo and its JPEG
Encoded = bytes | str  # a JPEG, or the reason for leaving the photo out
VERSIONS = {
    "python": platform.python_version(),
    "pillow": PIL.__version__,
    "numpy": numpy.__version__,
}


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: its file, and the photos it is to hold."""

    file: str
    side: Side
    photos: Sequence[Photo]


@dataclass(frozen=True)
class Shard:
    """One tar file, as the manifest describes it."""

    file: str
    photos: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """`parts/<shard>.json`: a shard that is there, from which photos, and those left out."""

    inputs: str  # a hash of all that the bytes of the shard depend on
    shard: Shard
    broken: dict[str, str]  # id → reason


def pack(
    folder: Path,
    name: str,
    *,
    size: int = 224,
    shard_mb: float = 100.0,
    workers: int | None = None,
    min_photos: int = 1,
) -> dict[str, Any]:
    """Pack the photos of `split.csv` into `<folder>/datasets/<name>/`; returns the manifest.

    Photos that cannot be decoded are left out. Raises DataError when too little is left.
    """
    split = read_split(folder)
    dataset = dataset_path(folder, name)
    dataset.mkdir(parents=True, exist_ok=True)
    # Without a manifest the folder is not complete: none may stand while shards change.
    (dataset / "manifest.json").unlink(missing_ok=True)
    plans = plan_shards(split, size, shard_mb)
    parts = pack_shards(plans, folder, dataset, size, workers)
    _remove_others(dataset, {plan.file for plan in plans})
    return join(dataset, split, parts, size=size, shard_mb=shard_mb, min_photos=min_photos)


def plan_shards(split: Split, size: int, shard_mb: float) -> list[ShardPlan]:
    """Shards of about `shard_mb`, each side by itself, photos in the order of their ids."""
    photo_bytes = JPEG_BYTES_A_PIXEL * size * size + TAR_BYTES_A_SAMPLE
    length = max(1, round(shard_mb * 1e6 / photo_bytes))
    plans: list[ShardPlan] = []
    for side in SIDES:
        photos = [photo for photo in split.photos if photo.side == side]
        for number, start in enumerate(range(0, len(photos), length)):
            file = f"{side}-{number:05d}.tar"
            plans.append(ShardPlan(file, side, photos[start : start + length]))
    return plans


def pack_shards(
    plans: Sequence[ShardPlan], folder: Path, dataset: Path, size: int, workers: int | None
) -> list[Part]:
    """Pack those shards that are not there yet; returns what is known of each, in their order."""
    inputs = {plan.file: _inputs(plan, folder, size) for plan in plans}
    parts = {plan.file: _find_part(dataset, plan, inputs[plan.file]) for plan in plans}
    missing = [plan for plan in plans if parts[plan.file] is None]
    total = sum(len(plan.photos) for plan in plans)
    waiting = sum(len(plan.photos) for plan in missing)
    progress: tqdm[Any] = tqdm(total=total, initial=total - waiting, desc="pack", unit=" photos")
    with process_pool(workers) as pool, progress:
        for plan, encoded in _encode_ahead(missing, folder, size, pool):
            shown = _counted(encoded, progress)
            parts[plan.file] = _pack_shard(dataset, plan, shown, inputs[plan.file])
    return [part for part in parts.values() if part is not None]


def _encode_ahead(
    plans: Iterable[ShardPlan], folder: Path, size: int, pool: Executor
) -> Iterator[tuple[ShardPlan, Iterator[Encoded]]]:
    """Each plan with its photos' JPEGs, which are made while the shard before is written."""
    under_way: deque[tuple[ShardPlan, Iterator[Encoded]]] = deque()
    for plan in plans:
        under_way.append((plan, _encode(plan, folder, size, pool)))
        if len(under_way) == AHEAD:
            yield under_way.popleft()
    yield from under_way


def _encode(plan: ShardPlan, folder: Path, size: int, pool: Executor) -> Iterator[Encoded]:
    paths = [photo_path(folder, photo.id) for photo in plan.photos]
    return pool.map(partial(encode, size=size), paths, chunksize=PHOTOS_A_TASK)


def _counted(encoded: Iterable[Encoded], progress: "tqdm[Any]") -> Iterator[Encoded]:
    for jpeg in encoded:
        progress.update()
        yield jpeg


def _inputs(plan: ShardPlan, folder: Path, size: int) -> str:
    """A hash of what the bytes of a shard depend on; of a photo, its size stands for its bytes."""
    photos = [
        (photo.id, photo.count, photo.group, _size_of(photo_path(folder, photo.id)))
        for photo in plan.photos
    ]
    settings = [size, JPEG_QUALITY, FULL_COLOUR, VERSIONS, photos]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def part_path(dataset: Path, file: str) -> Path:
    return dataset / "parts" / Path(file).with_suffix(".json")


def _find_part(dataset: Path, plan: ShardPlan, inputs: str) -> Part | None:
    """What is known of a shard that is there with the bytes that it should have, or None."""
    try:
        part = read_part(part_path(dataset, plan.file).read_bytes())
        there = sha256_of(dataset / plan.file)
    except FileNotFoundError:
        return None
    return part if (part.inputs, part.shard.sha256) == (inputs, there) else None


def read_part(content: bytes) -> Part:
    """What `to_json` made of one."""
    found = json.loads(content)
    return Part(found["inputs"], Shard(**found["shard"]), found["broken"])


def pack_shard(plan: ShardPlan, folder: Path, dataset: Path, size: int, pool: Executor) -> Part:
    """Pack one shard of photos that are in the folder, whether or not it is there."""
    encoded = _encode(plan, folder, size, pool)
    return _pack_shard(dataset, plan, encoded, _inputs(plan, folder, size))


def _pack_shard(dataset: Path, plan: ShardPlan, encoded: Iterable[Encoded], inputs: str) -> Part:
    samples: list[Sample] = []
    broken: dict[str, str] = {}
    for photo, jpeg in zip(plan.photos, encoded, strict=True):
        if isinstance(jpeg, str):
            broken[photo.id] = jpeg
        else:
            samples.append((photo, jpeg))
    part = Part(inputs, _write_shard(dataset / plan.file, samples), broken)
    write_atomic(part_path(dataset, plan.file), to_json(asdict(part)))
    return part


def join(
    dataset: Path,
    split: Split,
    parts: Sequence[Part],
    *,
    size: int,
    shard_mb: float,
    min_photos: int,
) -> dict[str, Any]:
    """Write the lists and the manifest of shards that are all there; returns the manifest.

    Raises DataError when too little is left.
    """
    broken = {photo_id: why for part in parts for photo_id, why in part.broken.items()}
    packed = [photo for photo in split.photos if photo.id not in broken]
    check_enough(packed, split.counts, min_photos)
    for side in SIDES:
        names = _list_names(packed, side, split.counts)
        write_atomic(dataset / f"{side}_list.json", to_json(names))
    left_out = [*split.left_out, *(LeftOut(*one) for one in broken.items())]
    shards = {
        side: [asdict(part.shard) for part in parts if part.shard.file.startswith(f"{side}-")]
        for side in SIDES
    }
    there = Counter((photo.side, photo.count) for photo in packed)
    manifest = {
        "name": dataset.name,
        "size": size,
        "shard_mb": shard_mb,
        "jpeg_quality": JPEG_QUALITY,
        "counts": split.counts,
        "split": {"method": split.method, "test_fraction": split.test_fraction},
        "shards": shards,
        "photos": {
            side: {str(count): there[side, count] for count in split.counts} for side in SIDES
        },
        "left_out": by_reason(left_out),
        "versions": VERSIONS,
    }
    write_atomic(dataset / "manifest.json", to_json(manifest))
    return manifest


def encode(path: Path, size: int) -> Encoded:
    """A photo as JPEG of `size` × `size`: as it is where it fits, else squashed once.

    Or else the reason for leaving it out.
    """
    try:
        photo = path.read_bytes()
        pixels = to_pixels(photo, size)
    except FileNotFoundError:
        return REASON_NO_PHOTO
    except PhotoError:
        return REASON_BROKEN_PHOTO
    with Image.open(io.BytesIO(photo)) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size)) and upright:
            return photo
    squashed = io.BytesIO()
    Image.fromarray(pixels).save(squashed, "JPEG", quality=JPEG_QUALITY, subsampling=FULL_COLOUR)
    return squashed.getvalue()


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


def _remove_others(dataset: Path, current: set[str]) -> None:
    """Remove the shards of an earlier packing that had more of them."""
    for side in SIDES:
        for file in dataset.glob(f"{side}-*.tar"):
            if file.name not in current:
                file.unlink()
                part_path(dataset, file.name).unlink(missing_ok=True)


def _list_names(photos: list[Photo], side: Side, counts: list[int]) -> dict[str, list[str]]:
    """Count → names, built like the public `file_list.json`."""
    names: dict[str, list[str]] = {str(count): [] for count in counts}
    for photo in photos:
        if photo.side == side:
            names[str(photo.count)].append(f"data/metadata/{photo.id}.json")
    return names
