"""Pack the split photos into WebDataset shards, lists and a manifest, reproducible to the byte.

The split alone decides which photos a shard holds. So shards can be packed in any order and by any
number of processes, and an existing shard is not packed again.
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

from common.dataset import Side
from common.files import write_atomic
from data_prep.folder import (
    REASON_BROKEN_PHOTO,
    REASON_NO_PHOTO,
    LeftOut,
    by_reason,
    dataset_path,
    metadata_path,
    photo_path,
    sha256_of,
    to_json,
)
from data_prep.processes import process_pool
from data_prep.products import Product, read_products
from data_prep.split import SIDES, Photo, Split, check_enough, read_split
from serving.container.preprocess import PhotoError, to_pixels

JPEG_QUALITY = 95
FULL_COLOUR = 0  # no chroma subsampling, by Pillow's number; why: benchmarks/serving/README.md
JPEG_BYTES_A_PIXEL = 0.5  # roughly, at that quality; decides how many photos a shard holds
TAR_BYTES_A_SAMPLE = 2048  # two headers, the label, and padding
PHOTOS_A_TASK = 32  # makes communication between the processes cheap compared to the decoding
AHEAD = 2  # shards whose photos are decoded at the same time, so that writing one idles no core

Encoded = bytes | str  # a JPEG, or the reason for leaving the photo out
VERSIONS = {
    "labels": "2",  # with products
    "python": platform.python_version(),
    "pillow": PIL.__version__,
    "numpy": numpy.__version__,
}


@dataclass(frozen=True)
class ShardPlan:
    """A shard's file, and the photos that it is to hold."""

    file: str
    photos: Sequence[Photo]


@dataclass(frozen=True)
class Shard:
    """A tar file, as the manifest describes it."""

    file: str
    photos: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """An existing shard, as `parts/<shard>.json` describes it."""

    inputs: str  # a hash of everything that the bytes of the shard depend on
    shard: Shard
    broken: dict[str, str]  # id → reason
    products: dict[str, int]  # how many there are, and how often something is missing or wrong


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

    Photos that cannot be decoded are left out. Raises DataError if too few photos are left.
    """
    split = read_split(folder)
    dataset = dataset_path(folder, name)
    dataset.mkdir(parents=True, exist_ok=True)
    # A data set with a manifest is complete, so there must be none while shards change.
    (dataset / "manifest.json").unlink(missing_ok=True)
    plans = plan_shards(split, size, shard_mb)
    parts = pack_shards(plans, folder, dataset, size, workers)
    _remove_others(dataset, {plan.file for plan in plans})
    return join(dataset, split, parts, size=size, shard_mb=shard_mb, min_photos=min_photos)


def plan_shards(split: Split, size: int, shard_mb: float) -> list[ShardPlan]:
    """Plan shards of about `shard_mb`, each of one side, with the photos in order of their ids."""
    photo_bytes = JPEG_BYTES_A_PIXEL * size * size + TAR_BYTES_A_SAMPLE
    length = max(1, round(shard_mb * 1e6 / photo_bytes))
    plans: list[ShardPlan] = []
    for side in SIDES:
        photos = [photo for photo in split.photos if photo.side == side]
        for number, start in enumerate(range(0, len(photos), length)):
            plans.append(ShardPlan(f"{side}-{number:05d}.tar", photos[start : start + length]))
    return plans


def pack_shards(
    plans: Sequence[ShardPlan], folder: Path, dataset: Path, size: int, workers: int | None
) -> list[Part]:
    """Pack the shards that do not exist yet; returns the parts of all, in order."""
    inputs = {plan.file: _inputs(plan, folder, size) for plan in plans}
    parts = {plan.file: _find_part(dataset, plan, inputs[plan.file]) for plan in plans}
    missing = [plan for plan in plans if parts[plan.file] is None]
    total = sum(len(plan.photos) for plan in plans)
    waiting = sum(len(plan.photos) for plan in missing)
    progress: tqdm[Any] = tqdm(total=total, initial=total - waiting, desc="pack", unit=" photos")
    with process_pool(workers) as pool, progress:
        for plan, encoded in _encode_ahead(missing, folder, size, pool):
            shown = _counted(encoded, progress)
            parts[plan.file] = _pack_shard(folder, dataset, plan, shown, inputs[plan.file])
    return [part for part in parts.values() if part is not None]


def _encode_ahead(
    plans: Iterable[ShardPlan], folder: Path, size: int, pool: Executor
) -> Iterator[tuple[ShardPlan, Iterator[Encoded]]]:
    """Yield each plan with the JPEGs of its photos, encoded while the previous shard is written."""
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
    """Hash what the bytes of a shard depend on; the size of a photo's file stands for its bytes."""
    files = [photo_path(folder, photo.id) for photo in plan.photos]
    photos = [
        (photo.id, _label(photo, folder)[0], file.stat().st_size if file.exists() else None)
        for photo, file in zip(plan.photos, files, strict=True)
    ]
    settings = [size, JPEG_QUALITY, FULL_COLOUR, VERSIONS, photos]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def part_path(dataset: Path, file: str) -> Path:
    return dataset / "parts" / Path(file).with_suffix(".json")


def _find_part(dataset: Path, plan: ShardPlan, inputs: str) -> Part | None:
    """Return the part of a shard that exists with the right bytes, or else None."""
    try:
        part = read_part(part_path(dataset, plan.file).read_bytes())
        there = sha256_of(dataset / plan.file)
    except (FileNotFoundError, KeyError):  # or of an older version
        return None
    return part if (part.inputs, part.shard.sha256) == (inputs, there) else None


def read_part(content: bytes) -> Part:
    """Decode a part that `to_json` encoded."""
    found = json.loads(content)
    return Part(found["inputs"], Shard(**found["shard"]), found["broken"], found["products"])


def pack_shard(plan: ShardPlan, folder: Path, dataset: Path, size: int, pool: Executor) -> Part:
    """Pack one shard, even if it exists, of the photos that are in the folder."""
    encoded = _encode(plan, folder, size, pool)
    return _pack_shard(folder, dataset, plan, encoded, _inputs(plan, folder, size))


def _pack_shard(
    folder: Path, dataset: Path, plan: ShardPlan, encoded: Iterable[Encoded], inputs: str
) -> Part:
    samples: list[tuple[str, bytes, str]] = []
    broken: dict[str, str] = {}
    products: Counter[str] = Counter()
    for photo, jpeg in zip(plan.photos, encoded, strict=True):
        if isinstance(jpeg, str):
            broken[photo.id] = jpeg
        else:
            label, counted = _label(photo, folder)
            samples.append((photo.id, jpeg, label))
            products += counted
    shard = _write_shard(dataset / plan.file, samples)
    part = Part(inputs, shard, broken, dict(sorted(products.items())))
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
    """Write the lists and the manifest once all shards exist; returns the manifest.

    Raises DataError if too few photos are left.
    """
    broken = {photo_id: why for part in parts for photo_id, why in part.broken.items()}
    packed = [photo for photo in split.photos if photo.id not in broken]
    check_enough(packed, split.counts, min_photos)
    lists = {side: _list_names(packed, side, split.counts) for side in SIDES}
    for side in SIDES:
        write_atomic(dataset / f"{side}_list.json", to_json(lists[side]))
    left_out = [*split.left_out, *(LeftOut(*one) for one in broken.items())]
    shards = {
        side: [asdict(part.shard) for part in parts if part.shard.file.startswith(f"{side}-")]
        for side in SIDES
    }
    products = sum((Counter(part.products) for part in parts), Counter())
    manifest = {
        "name": dataset.name,
        "size": size,
        "shard_mb": shard_mb,
        "jpeg_quality": JPEG_QUALITY,
        "counts": split.counts,
        "split": {"method": split.method, "test_fraction": split.test_fraction},
        "shards": shards,
        "photos": {
            side: {count: len(names) for count, names in lists[side].items()} for side in SIDES
        },
        "products": {"products": 0, **dict(sorted(products.items()))},
        "left_out": by_reason(left_out),
        "versions": VERSIONS,
    }
    write_atomic(dataset / "manifest.json", to_json(manifest))
    return manifest


def _label(photo: Photo, folder: Path) -> tuple[str, Counter[str]]:
    """Return the label of a photo, as JSON, and counts of its products and their problems."""
    metadata = metadata_path(folder, photo.id)  # which may have left the bucket since the split
    none: tuple[list[Product], Counter[str]] = ([], Counter({"record missing": 1}))
    products, problems = read_products(metadata.read_bytes()) if metadata.exists() else none
    label = {"count": photo.count, "group": photo.group, "products": products}
    return json.dumps(label), problems + Counter({"products": len(products)})


def encode(path: Path, size: int) -> Encoded:
    """Return a photo as a JPEG of `size` × `size` pixels, or the reason for leaving it out.

    A JPEG that has this size already keeps its bytes; others are squashed and encoded once.
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


def _write_shard(path: Path, samples: list[tuple[str, bytes, str]]) -> Shard:
    """Write ids, JPEGs and labels in the layout of WebDataset: `<id>.jpg`, then `<id>.json`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for photo_id, jpeg, label in samples:
            for suffix, content in (("jpg", jpeg), ("json", label.encode())):
                entry = tarfile.TarInfo(f"{photo_id}.{suffix}")  # mtime 0, owner 0, mode 0644
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    content = buffer.getvalue()
    write_atomic(path, content)
    return Shard(path.name, len(samples), len(content), hashlib.sha256(content).hexdigest())


def _remove_others(dataset: Path, current: set[str]) -> None:
    """Delete the shards of an earlier packing that the current one does not have."""
    for file in dataset.glob("*.tar"):
        if file.name not in current:
            file.unlink()
            part_path(dataset, file.name).unlink(missing_ok=True)


def _list_names(photos: list[Photo], side: Side, counts: list[int]) -> dict[str, list[str]]:
    """Return count → names, like the public bucket's `file_list.json`."""
    names: dict[str, list[str]] = {str(count): [] for count in counts}
    for photo in photos:
        if photo.side == side:
            names[str(photo.count)].append(f"data/metadata/{photo.id}.json")
    return names
