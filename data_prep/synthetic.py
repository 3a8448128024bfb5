"""Draw synthetic photos of bins in the public bucket's format, for users without photos.

A bin is planned once (walls, camera, light, items) and photographed one to four times, with one
item more or fewer each time, so that photos with neighbouring ids share products, as in the real
data. The same seed gives the same bytes, whatever the number of processes.
"""

import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from common.files import write_atomic
from data_prep.drawing import KINDS, Box, draw_bin, draw_item, draw_tape
from data_prep.folder import (
    DataError,
    metadata_path,
    photo_path,
    start_selection,
    to_json,
    write_selection,
)
from data_prep.processes import process_pool

COUNT_SHARES = (0.03, 0.12, 0.21, 0.24, 0.20, 0.15, 0.04, 0.01)  # of 0 … 7, close to reality
SHOT_SHARES = (0.4, 0.3, 0.2, 0.1)  # of bins photographed 1 … 4 times
LEAST_SIDE = 64  # pixels; items cannot be distinguished in smaller photos
MOST_ITEMS = len(COUNT_SHARES) - 1
TWIN_SHARE = 0.15  # probability that an item is another piece of the previous item's product
CATALOGUE_SHARE = 0.02  # probability that an item is a product that other bins may have as well
CATALOGUE = 200  # such products
STACKED_SHARE = 0.5  # probability that an item lies on a box if it can
SIZES = {  # ranges of width and height, as shares of the bin's
    "box": ((0.2, 0.5), (0.18, 0.65)),
    "book": ((0.22, 0.42), (0.25, 0.75)),
    "bottle": ((0.13, 0.2), (0.42, 0.8)),
    "bag": ((0.26, 0.5), (0.25, 0.5)),
}
BIN_INCHES = {"length": 20.0, "width": 16.0, "height": 12.0}  # width: from front to back
DEPTHS = (0.15, 0.6)  # range of an item's share of the bin from front to back
DENSITIES = (0.005, 0.03)  # pounds per cubic inch


@dataclass(frozen=True)
class Product:
    """A product; its looks depend on `seed` alone."""

    asin: str
    kind: str
    seed: int


@dataclass(frozen=True)
class Placed:
    """An item in the bin: centre, depth (0 back … 1 front), lift and size, as shares."""

    product: Product
    across: float
    depth: float
    lift: float
    width: float
    height: float


@dataclass(frozen=True)
class BinPlan:
    """A bin; photo k of it shows the first `counts[k]` of `items`."""

    number: int
    items: tuple[Placed, ...]
    counts: tuple[int, ...]


def synthesize(
    folder: Path,
    photos: int,
    seed: int,
    *,
    sides: range = range(300, 601),
    workers: int | None = None,
) -> list[str]:
    """Draw `photos` photos with their metadata; returns their ids.

    The width and the height of a photo, in pixels, are chosen from `sides`.
    """
    if sides.start < LEAST_SIDE:
        raise DataError(f"--side {sides.start}: photos need at least {LEAST_SIDE} pixels per side")
    start_selection(folder)
    shots = list(islice(_shots(seed), photos))
    ids = [_photo_id(number) for number in range(photos)]
    write = partial(_write_shot, folder, seed, sides)
    with process_pool(workers) as pool:
        done = pool.map(write, ids, *zip(*shots, strict=True), chunksize=8)
        for _ in tqdm(done, total=photos, desc="synthesize", unit=" photos"):
            pass
    write_selection(folder, ids, [])
    return ids


def _photo_id(number: int) -> str:
    """Return `1`, `00001`, `00002`, …; the public bucket, too, has ids like the first two."""
    return f"{number:05d}" if number else "1"


def _shots(seed: int) -> Iterator[tuple[BinPlan, int]]:
    """Yield the bin of each photo, in order, and the photo's number in that bin."""
    for number in count():
        plan = plan_bin(seed, number)
        yield from ((plan, shot) for shot in range(len(plan.counts)))


def plan_bin(seed: int, number: int) -> BinPlan:
    """Decide what lies in a bin, and how many items each of its photos shows."""
    random = default_rng([seed, number])
    counts = [int(random.choice(len(COUNT_SHARES), p=COUNT_SHARES))]
    for _ in range(int(random.choice(len(SHOT_SHARES), p=SHOT_SHARES))):
        more = counts[-1] == 0 or (counts[-1] < MOST_ITEMS and random.random() < 0.5)
        counts.append(counts[-1] + (1 if more else -1))
    items: list[Placed] = []
    for _ in range(max(counts)):
        items.append(_place(random, _product(random, items), items))
    return BinPlan(number, tuple(items), tuple(counts))


def _product(random: Generator, items: list[Placed]) -> Product:
    if items and random.random() < TWIN_SHARE:
        return items[-1].product
    shared = random.random() < CATALOGUE_SHARE
    number = int(random.integers(CATALOGUE) if shared else random.integers(CATALOGUE, 36**8))
    return Product(f"B0{np.base_repr(number, 36):0>8}", tuple(KINDS)[number % len(KINDS)], number)


def _place(random: Generator, product: Product, items: list[Placed]) -> Placed:
    """Place an item on top of a box, or on the floor where it hides the least of the others."""
    width, height = _size(product.kind, default_rng(product.seed))
    stackable = [
        item
        for item in items
        if item.product.kind == "box" and not item.lift and item.height + height < 0.95
    ]
    if stackable and random.random() < STACKED_SHARE:
        below = stackable[random.integers(len(stackable))]
        return Placed(product, below.across, below.depth, below.height * 0.93, width, height)
    places = [(random.uniform(width / 2, 1 - width / 2), random.random()) for _ in range(5)]
    across, depth = max(
        places, key=lambda place: min((abs(place[0] - i.across) for i in items), default=0.0)
    )
    return Placed(product, across, depth, 0.0, width, height)


def _size(kind: str, looks: Generator) -> tuple[float, float]:
    """Choose a width and a height, as shares of the bin's."""
    widths, heights = SIZES[kind]
    return float(looks.uniform(*widths)), float(looks.uniform(*heights))


def _write_shot(
    folder: Path, seed: int, sides: range, photo_id: str, plan: BinPlan, shot: int
) -> None:
    write_atomic(photo_path(folder, photo_id), draw_shot(seed, plan, shot, sides))
    write_atomic(metadata_path(folder, photo_id), to_json(metadata_of(plan, shot)))


def metadata_of(plan: BinPlan, shot: int) -> dict[str, Any]:
    """Make the metadata of a photo, with those fields of the public bucket that are read."""
    pieces = Counter(item.product for item in plan.items[: plan.counts[shot]])
    return {
        "BIN_FCSKU_DATA": {
            product.asin: {"asin": product.asin, "quantity": quantity, **_measures(product)}
            for product, quantity in pieces.items()
        },
        "EXPECTED_QUANTITY": pieces.total(),
    }


def _measures(product: Product) -> dict[str, dict[str, Any]]:
    """The dimensions with which a product is drawn, and a weight that goes with them."""
    looks = default_rng(product.seed)
    across, high = _size(product.kind, looks)
    shares = {"length": across, "width": float(looks.uniform(*DEPTHS)), "height": high}
    inches = {name: share * BIN_INCHES[name] for name, share in shares.items()}
    pounds = math.prod(inches.values()) * float(looks.uniform(*DENSITIES))
    measures = {name: {"unit": "IN", "value": round(value, 2)} for name, value in inches.items()}
    return {**measures, "weight": {"unit": "pounds", "value": round(pounds, 2)}}


def draw_shot(seed: int, plan: BinPlan, shot: int, sides: range) -> bytes:
    """Draw a photo of a bin; returns a JPEG."""
    bin_random = default_rng([seed, plan.number, 1])  # walls, camera, light: as in all its photos
    shot_random = default_rng([seed, plan.number, 2, shot])
    size = (int(bin_random.choice(sides)), int(bin_random.choice(sides)))
    image = Image.new("RGB", size)
    inside = draw_bin(image, bin_random)
    for item in sorted(plan.items[: plan.counts[shot]], key=lambda item: item.depth):
        draw_item(image, item.product.kind, _box(item, inside, shot_random), item.product.seed)
    draw_tape(image, inside, bin_random)
    pixels = _light(np.asarray(image), bin_random, shot_random)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=int(bin_random.integers(78, 92)))
    return jpeg.getvalue()


def _box(item: Placed, inside: Box, random: Generator) -> Box:
    """Compute an item's place in the picture; it moves a little from photo to photo."""
    left, top, right, bottom = inside
    wide, high = right - left, bottom - top
    scale = 0.8 + 0.2 * item.depth  # items in front look larger and stand lower
    width, height = item.width * wide * scale, item.height * high * scale
    centre = left + wide * (item.across + random.normal(0, 0.006))
    base = bottom - high * (0.14 * (1 - item.depth) + item.lift * scale)
    return centre - width / 2, base - height, centre + width / 2, base


def _light(
    image: NDArray[np.uint8], bin_random: Generator, shot_random: Generator
) -> NDArray[np.uint8]:
    """Add dim yellow light from above, a vignette, and the noise of a small sensor."""
    height, width, _ = image.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope_x, slope_y = bin_random.uniform(-0.12, 0.12), bin_random.uniform(-0.2, 0.05)
    brightness = bin_random.uniform(0.55, 0.95) * shot_random.uniform(0.97, 1.03)
    gain = brightness * (1 + slope_x * x + slope_y * y) * (1 - 0.14 * (x * x + y * y))
    cast = np.array([1.0, bin_random.uniform(0.9, 0.95), bin_random.uniform(0.68, 0.82)])
    noise = shot_random.standard_normal((height, width), dtype=np.float32)
    noise *= np.float32(bin_random.uniform(2, 6))
    lit = image * (gain[..., None] * cast.astype(np.float32)) + noise[..., None]
    return np.clip(lit, 0, 255).astype(np.uint8)
