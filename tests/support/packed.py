"""A packed data set for tests: photos of bright squares, and the number of them is the count."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.dataset import Photo

COUNTS = [1, 2, 3]
SIZE = 32


def draw_photo(photo_id: str, count: int, group: str, size: int = SIZE) -> Photo:
    """`count` bright squares on noise that follows from the id; three in four have a product.

    A PNG: it keeps every pixel, and is read where a JPEG is.
    """
    generator = np.random.default_rng(int(photo_id))
    pixels = generator.integers(0, 60, (size, size, 3), np.uint8)
    cell = size // 4
    for place in generator.choice(16, count, replace=False):
        row, column = divmod(int(place), 4)
        pixels[row * cell : (row + 1) * cell - 1, column * cell : (column + 1) * cell - 1] = 230
    measures = {"length": 9.5, "width": 6.0, "weight": count / 4}  # tells whose product it is
    products = [{"asin": "B00000001", "quantity": count, **measures}] if int(photo_id) % 4 else []
    return Photo(photo_id, encode(pixels), count, group, products)


def encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def draw_photos(number: int, first: int = 0, size: int = SIZE) -> list[Photo]:
    """Counts in turn; three photos in a row form a group."""
    return [
        draw_photo(f"{i:05d}", COUNTS[i % len(COUNTS)], f"product {i // 3}", size)
        for i in range(first, first + number)
    ]


def write_packed(
    folder: Path,
    train: list[Photo],
    test: list[Photo],
    *,
    photos_a_shard: int = 20,
    size: int = SIZE,
) -> Path:
    """Write the shards and manifest.json, as `data_prep pack` does; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"train": train, "test": test}
    manifest = {
        "name": "squares",
        "size": size,
        "counts": COUNTS,
        "shards": {
            side: [
                _write_shard(folder / f"{side}-{number:05d}.tar", photos[start:][:photos_a_shard])
                for number, start in enumerate(range(0, len(photos), photos_a_shard))
            ]
            for side, photos in sides.items()
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _write_shard(file: Path, photos: list[Photo]) -> dict[str, str | int]:
    with tarfile.open(file, "w") as shard:
        for photo in photos:
            label = json.dumps(
                {"count": photo.count, "group": photo.group, "products": photo.products}
            ).encode()
            for suffix, content in (("jpg", photo.jpeg), ("json", label)):
                entry = tarfile.TarInfo(f"{photo.id}.{suffix}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    content = file.read_bytes()
    return {
        "file": file.name,
        "photos": len(photos),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def timeless_history(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without the times, which differ from run to run."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "dollars", "photos_per_second")
    return [
        {key: value for key, value in line.items() if not key.endswith(times)} for line in lines
    ]
