"""Write an HTML page about the photos of a split, to look at before training on them."""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from common.files import write_atomic
from data_prep.folder import photo_path
from data_prep.processes import process_pool
from data_prep.split import SIDES, Photo, largest_group, read_split, twins

MEASURED_SIDE = 256  # pixels of the longer side; sharpness must not depend on the photo's size
HASH_SIDE = 8
THUMBNAIL = 160  # pixels
SAMPLES = 8  # photos per row
BARS = 20
PHOTOS_A_TASK = 16


@dataclass(frozen=True, slots=True)
class Look:
    """The measurements of a photo."""

    width: int
    height: int
    size: int  # bytes
    brightness: float  # mean grey level, from 0 (black) to 1 (white)
    sharpness: float  # variance of the Laplacian of the grey levels; low if nothing is in focus
    digest: bytes  # SHA-256 of the file
    appearance: bytes  # perceptual hash of 64 bits: equal for photos that look the same


def write_page(folder: Path, page: Path, workers: int | None = None) -> Path:
    """Measure each photo of `split.csv` and write the page; returns its path.

    Raises DataError without a split.
    """
    split = read_split(folder)
    paths = [photo_path(folder, photo.id) for photo in split.photos]
    with process_pool(workers) as pool:
        measured = pool.map(look_at, paths, chunksize=PHOTOS_A_TASK)
        looks = list(tqdm(measured, total=len(paths), desc="stats", unit=" photos"))
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
    """Measure a photo; returns None if it cannot be decoded."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            image.draft("L", (MEASURED_SIDE, MEASURED_SIDE))  # decodes a JPEG smaller, and faster
            grey = image.convert("L")
    except Exception:  # Pillow raises almost anything for a damaged file, even AssertionError
        return None
    tiny = grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BILINEAR)
    grey.thumbnail((MEASURED_SIDE, MEASURED_SIDE))
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


def _sharpness(pixels: NDArray[np.float32]) -> float:
    """Compute the variance of the Laplacian of `pixels` [height, width].

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000.
    """
    inner = pixels[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    around = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float((around - 4 * inner).var())


def _difference_hash(pixels: NDArray[np.int16]) -> bytes:
    """Tell in one bit for each pixel whether it is darker than its right neighbour."""
    return np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes()


def doubles(seen: Sequence[tuple[Photo, Look]], what: str) -> dict[str, int]:
    """Count the photos that share `what` with another one, and the test photos that share it with
    a training photo."""
    by_value: dict[bytes, Counter[str]] = {}
    for photo, look in seen:
        by_value.setdefault(getattr(look, what), Counter())[photo.side] += 1
    several = [sides for sides in by_value.values() if sides.total() > 1]
    return {
        "photos": sum(sides.total() for sides in several),
        "leaked": sum(sides["test"] for sides in several if sides["train"]),
    }


def _sides(photos: Sequence[Photo], counts: Iterable[int]) -> list[dict[str, Any]]:
    """For each side and count: the number of photos, and their share of the side."""
    rows = []
    for side in SIDES:
        found = Counter(photo.count for photo in photos if photo.side == side)
        shares = [(count, found[count], found[count] / max(found.total(), 1)) for count in counts]
        rows.append({"name": side, "total": found.total(), "counts": shares})
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
    """Make bars from the minimum to the 99.5th percentile; the last includes all values above."""
    top = max(float(np.percentile(values, 99.5)), min(values))
    numbers, edges = np.histogram(np.clip(values, None, top), bins=BARS)
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {
        "name": name,
        "bars": [int(number) / max(int(numbers.max()), 1) for number in numbers],
        "least": f"{edges[0]:.4g}",
        "most": f"{edges[-1]:.4g}",
        "summary": f"median {middle:.4g}, 90 % between {low:.4g} and {high:.4g}",
    }


def _sheets(
    folder: Path, seen: Sequence[tuple[Photo, Look]], counts: Iterable[int]
) -> list[dict[str, Any]]:
    """Make rows of thumbnails: samples of each count, the darkest and the least sharp photos."""
    sheets: dict[str, Sequence[tuple[Photo, Look]]] = {}
    for count in counts:
        found = [one for one in seen if one[0].count == count]
        sheets[f"Count {count}"] = found[:: max(1, len(found) // SAMPLES)]
    sheets["The darkest photos"] = sorted(seen, key=lambda one: one[1].brightness)
    sheets["The least sharp photos"] = sorted(seen, key=lambda one: one[1].sharpness)
    return [
        {"name": name, "photos": [_thumbnail(folder, photo) for photo, _ in found[:SAMPLES]]}
        for name, found in sheets.items()
    ]


def _thumbnail(folder: Path, photo: Photo) -> dict[str, Any]:
    with Image.open(photo_path(folder, photo.id)) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    encoded = base64.b64encode(content.getvalue()).decode()
    return {"id": photo.id, "count": photo.count, "uri": f"data:image/jpeg;base64,{encoded}"}
