"""Bins drawn in the public bucket's format, for those who have no photos at hand.

A bin is planned once (walls, camera, light, items) and photographed one to four times,
an item more or fewer each time, so that neighbouring ids share products, as in the real
data. The same seed gives the same bytes, whatever the number of processes.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
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

COUNT_SHARES = (0.03, 0.12, 0.21, 0.24, 0.20, 0.15, 0.04, 0.01)  # of 0 … 7, near the real ones
SHOT_SHARES = (0.4, 0.3, 0.2, 0.1)  # of bins photographed 1 … 4 times
LEAST_SIDE = 64  # pixels; below it nothing can be told apart
MOST_ITEMS = len(COUNT_SHARES) - 1
TWIN_SHARE = 0.15  # of items that are one more piece of the product before
CATALOGUE_SHARE = 0.02  # of items that are a product which other bins hold as well
CATALOGUE = 200
STACKED_SHARE = 0.5  # of items that could lie on a box and do
SIZES = {  # least and most width, and height, as shares of the bin's
    "box": ((0.2, 0.5), (0.18, 0.65)),
    "book": ((0.22, 0.42), (0.25, 0.75)),
    "bottle": ((0.13, 0.2), (0.42, 0.8)),
    "bag": ((0.26, 0.5), (0.25, 0.5)),
}
ADJECTIVES = ("Classic", "Compact", "Deluxe", "Everyday", "Travel", "Ultra")
NOUNS = {
    "box": ("Oil Filter", "Board Game", "Phone Case", "Light Bulbs", "Building Set"),
    "book": ("Cookbook", "Field Guide", "Novel", "Atlas", "Workbook"),
    "bottle": ("Shampoo", "Vitamins", "Olive Oil", "Glass Cleaner", "Sun Lotion"),
    "bag": ("Socks", "Cable Set", "Rice", "Party Balloons", "Cotton Pads"),
}


@dataclass(frozen=True)
class Product:
    """What is sold under one ASIN; its looks follow from `seed` alone."""

    asin: str
    kind: str
    seed: int


@dataclass(frozen=True)
class Placed:
    """One piece in the bin: centre, depth (0 back … 1 front), lift and size as shares."""

    product: Product
    across: float
    depth: float
    lift: float
    width: float
    height: float


@dataclass(frozen=True)
class BinPlan:
    """One bin; shot k shows the first `counts[k]` of `items`."""

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
    """Draw `photos` photos, `sides` pixels a side, with their metadata; returns the ids."""
    if sides.start < LEAST_SIDE:
        raise DataError(f"{sides.start} pixels a side are too few: draw at least {LEAST_SIDE}")
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
    """`1`, `00001`, `00002`, …: the first two are different photos, as in the public bucket."""
    return f"{number:05d}" if number else "1"


def _shots(seed: int) -> Iterator[tuple[BinPlan, int]]:
    """Every photo in order: its bin, and which of the bin's shots it is."""
    number = 0
    while True:
        plan = plan_bin(seed, number)
        yield from ((plan, shot) for shot in range(len(plan.counts)))
        number += 1


def plan_bin(seed: int, number: int) -> BinPlan:
    """Decide what lies in a bin and how many items each of its shots shows."""
    random = default_rng([seed, number])
    count = int(random.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    counts = [count]
    for _ in range(int(random.choice(len(SHOT_SHARES), p=SHOT_SHARES))):
        step = 1 if count == 0 or (count < MOST_ITEMS and random.random() < 0.5) else -1
        count += step
        counts.append(count)
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
    """On top of a box, or on the floor: of a few random places the one that hides the least."""
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
    """Width and height as shares of the bin's."""
    widths, heights = SIZES[kind]
    return float(looks.uniform(*widths)), float(looks.uniform(*heights))


def _write_shot(
    folder: Path, seed: int, sides: range, photo_id: str, plan: BinPlan, shot: int
) -> None:
    write_atomic(photo_path(folder, photo_id), draw_shot(seed, plan, shot, sides))
    write_atomic(metadata_path(folder, photo_id), to_json(metadata_of(plan, shot)))


def metadata_of(plan: BinPlan, shot: int) -> dict[str, Any]:
    """The metadata of one shot, with the public bucket's fields."""
    count = plan.counts[shot]
    products: dict[str, Any] = {}
    for item in plan.items[:count]:
        product = item.product
        if product.asin not in products:
            looks = default_rng(product.seed)
            name = f"{looks.choice(ADJECTIVES)} {looks.choice(NOUNS[product.kind])}"
            inches = {
                side: {"unit": "IN", "value": round(float(looks.uniform(1, 12)), 2)}
                for side in ("height", "length", "width")
            }
            products[product.asin] = {
                "asin": product.asin,
                **inches,
                "name": name,
                "normalizedName": name,
                "quantity": 0,
                "weight": {"unit": "pounds", "value": round(float(looks.uniform(0.1, 5)), 2)},
            }
        products[product.asin]["quantity"] += 1
    return {"BIN_FCSKU_DATA": products, "EXPECTED_QUANTITY": count}


def draw_shot(seed: int, plan: BinPlan, shot: int, sides: range) -> bytes:
    """Draw one photo of a bin; returns a JPEG."""
    bin_random = default_rng([seed, plan.number, 1])  # walls, camera, light: the same each shot
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
    """Where an item stands in the picture; hands move the others a little between shots."""
    left, top, right, bottom = inside
    wide, high = right - left, bottom - top
    scale = 0.8 + 0.2 * item.depth  # nearer is larger and lower
    width, height = item.width * wide * scale, item.height * high * scale
    centre = left + wide * (item.across + random.normal(0, 0.006))
    base = bottom - high * (0.14 * (1 - item.depth) + item.lift * scale)
    return centre - width / 2, base - height, centre + width / 2, base


def _light(
    image: NDArray[np.uint8], bin_random: Generator, shot_random: Generator
) -> NDArray[np.uint8]:
    """Dim yellow light from above, a vignette, and the noise of a small sensor."""
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
