"""One HTML page about the photos of a split: what a person looks at before training on them."""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from tqdm import tqdm

from common.files import write_atomic
from data_prep.folder import photo_path
from data_prep.processes import process_pool
from data_prep.split import SIDES, Photo, largest_group, read_split, twins

LOOKED_AT = 256  # pixels of the longer side, so that sharpness does not depend on the photo's size
HASH_SIDE = 8
THUMBNAIL = 160  # pixels
SAMPLES = 8  # photos a row
BARS = 20
PHOTOS_A_TASK = 16


@dataclass(frozen=True, slots=True)
class Look:
    """What one photo is like."""

    width: int
    height: int
    size: int  # bytes
    brightness: float  # mean of its grey, 0 black … 1 white
    sharpness: float  # variance of the Laplacian of its grey; low where nothing is in focus
    digest: bytes  # of its bytes
    appearance: bytes  # 64 bits that photos have in common which look the same


def write_page(folder: Path, page: Path, workers: int | None = None) -> Path:
    """Look at each photo of `split.csv` and write the page; returns its path.

    Raises DataError without a split.
    """
    split = read_split(folder)
    paths = [photo_path(folder, photo.id) for photo in split.photos]
    with process_pool(workers) as pool:
        looks = list(
            tqdm(
                pool.map(look_at, paths, chunksize=PHOTOS_A_TASK),
                total=len(paths),
                desc="stats",
                unit=" photos",
            )
        )
    seen = [(photo, look) for photo, look in zip(split.photos, looks, strict=True) if look]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("stats.html.j2").render(
        photos=len(split.photos),
        unreadable=len(looks) - len(seen),
        left_out=Counter(one.reason for one in split.left_out),
        method=split.method,
        sides=_sides(split.photos, split.counts),
        groups=len({photo.group for photo in split.photos}),
        largest_group=largest_group(split.photos),
        twins=twins(split.photos),
        same_bytes=doubles(seen, "digest"),
        same_look=doubles(seen, "appearance"),
        histograms=_histograms([look for _, look in seen]),
        sheets=_sheets(folder, seen, split.counts),
    )
    write_atomic(page, html.encode())
    return page


def look_at(path: Path) -> Look | None:
    """Measure one photo; None when it cannot be decoded."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            image.draft("L", (LOOKED_AT, LOOKED_AT))  # a JPEG is decoded smaller, which is faster
            grey = image.convert("L")
    except Exception:  # for damaged files Pillow raises nearly anything, even asserts
        return None
    tiny = grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BILINEAR)
    grey.thumbnail((LOOKED_AT, LOOKED_AT))
    pixels = np.asarray(grey, np.float32)
    return Look(
        width=width,
        height=height,
        size=len(content),
        brightness=float(pixels.mean()) / 255,
        sharpness=_sharpness(pixels),
        digest=hashlib.sha256(content).digest(),
        appearance=_difference_hash(np.asarray(tiny, np.int16)),
    )


def _sharpness(pixels: "np.ndarray[Any, np.dtype[np.float32]]") -> float:
    """Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000."""
    inner = pixels[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    around = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float((around - 4 * inner).var())


def _difference_hash(pixels: "np.ndarray[Any, np.dtype[np.int16]]") -> bytes:
    """Which of two neighbours is brighter, as bits."""
    return np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes()


def doubles(seen: Sequence[tuple[Photo, Look]], what: str) -> dict[str, int]:
    """Photos that have `what` in common with another one, and test photos with a training one."""
    by_value: dict[bytes, Counter[str]] = {}
    for photo, look in seen:
        by_value.setdefault(getattr(look, what), Counter())[photo.side] += 1
    several = [sides for sides in by_value.values() if sides.total() > 1]
    return {
        "photos": sum(sides.total() for sides in several),
        "leaked": sum(sides["test"] for sides in several if sides["train"]),
    }


def _sides(photos: Sequence[Photo], counts: Iterable[int]) -> list[dict[str, Any]]:
    """For each side and count: how many, and which share of the side."""
    rows = []
    for side in SIDES:
        there = Counter(photo.count for photo in photos if photo.side == side)
        shares = [(count, there[count], there[count] / max(there.total(), 1)) for count in counts]
        rows.append({"name": side, "total": there.total(), "counts": shares})
    return rows


def _histograms(looks: Sequence[Look]) -> list[dict[str, Any]]:
    measured: dict[str, list[float]] = {
        "Width, pixels": [look.width for look in looks],
        "Height, pixels": [look.height for look in looks],
        "File, kilobytes": [look.size / 1000 for look in looks],
        "Brightness, 0 black to 1 white": [look.brightness for look in looks],
        "Sharpness, variance of the Laplacian": [look.sharpness for look in looks],
    }
    return [_histogram(name, values) for name, values in measured.items() if values]


def _histogram(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Bars from the least to the 99.5th percentile, the last with all beyond."""
    top = max(float(np.percentile(values, 99.5)), min(values))
    numbers, edges = np.histogram(np.clip(values, None, top), bins=BARS)
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {
        "name": name,
        "bars": [int(number) / max(int(numbers.max()), 1) for number in numbers],
        "least": f"{edges[0]:.4g}",
        "most": f"{edges[-1]:.4g}",
        "told": f"median {middle:.4g}, 90 % from {low:.4g} to {high:.4g}",
    }


def _sheets(
    folder: Path, seen: Sequence[tuple[Photo, Look]], counts: Iterable[int]
) -> list[dict[str, Any]]:
    """Rows of small photos: some of each count, the darkest and the least sharp."""
    thumbnails = partial(_thumbnails, folder)
    sheets = []
    for count in counts:
        of_count = [photo for photo, _ in seen if photo.count == count]
        step = max(1, len(of_count) // SAMPLES)
        sheets.append({"name": f"Count {count}", "photos": thumbnails(of_count[::step][:SAMPLES])})
    for name, what in (("The darkest", "brightness"), ("The least sharp", "sharpness")):
        worst = sorted(seen, key=lambda one, what=what: getattr(one[1], what))[:SAMPLES]  # type: ignore[misc]
        sheets.append({"name": name, "photos": thumbnails([photo for photo, _ in worst])})
    return sheets


def _thumbnails(folder: Path, photos: Iterable[Photo]) -> list[dict[str, Any]]:
    found = []
    for photo in photos:
        with Image.open(photo_path(folder, photo.id)) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
        content = io.BytesIO()
        small.save(content, "JPEG", quality=80)
        encoded = base64.b64encode(content.getvalue()).decode()
        found.append(
            {"id": photo.id, "count": photo.count, "uri": f"data:image/jpeg;base64,{encoded}"}
        )
    return found
