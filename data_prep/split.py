"""Split the photos into train and test, so that no product is on both sides.

A bin is photographed again whenever an item goes in or out, so a random split would test the
network on bins that it was trained on. Photos that share a product (ASIN), directly or through
other photos, therefore form a group, and each group goes to one side. A hash of the group's name,
its smallest product, decides which side. Adding photos later moves no photo to the other side,
unless they merge its group with another or add a smaller product to it; `split_folder` warns about
that.

In a very large data set most photos may form a single group. `purge` is for this case: the photo's
first product alone decides its side, and photos that share any product with a test photo are left
out of training. `random` splits photo by photo, for comparison.
"""

import csv
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Literal

from tqdm import tqdm

from common.dataset import Side
from common.files import write_atomic
from data_prep.folder import (
    REASON_NO_METADATA,
    REASON_TESTED,
    Bin,
    DataError,
    LeftOut,
    UnusableError,
    by_reason,
    metadata_path,
    read_json,
    read_left_out,
    to_json,
    usable_bin,
)

SIDES: tuple[Side, ...] = ("train", "test")
Method = Literal["group", "purge", "random"]
LARGE_GROUP = 0.1  # a group with a larger share of the photos causes a warning


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of the data set."""

    id: str
    count: int
    group: str
    side: Side


@dataclass(frozen=True)
class Split:
    """The content of `split.json` and `split.csv`: each photo has a side or is left out."""

    counts: list[int]
    method: Method
    test_fraction: float
    photos: list[Photo]
    left_out: list[LeftOut]


def split_folder(
    folder: Path,
    counts: range,
    *,
    method: Method = "group",
    test_fraction: float = 0.2,
    min_photos: int = 1,
) -> Split:
    """Split the photos of a working folder, and write `split.json` and `split.csv`.

    Raises DataError if too few photos are left.
    """
    trained = _trained_before(folder, method, test_fraction)
    (folder / "split.json").unlink(missing_ok=True)  # no older split may stay if this one fails
    bins, left_out = read_bins(folder, counts)
    result = split_bins(bins, left_out, counts, method=method, test_fraction=test_fraction)
    check_enough(result.photos, counts, min_photos)
    write_split(folder, result)
    if moved := sum(photo.side == "test" and photo.id in trained for photo in result.photos):
        print(
            f"warning: {moved:,} photos have moved from train to test, because others joined their "
            "groups: models trained before have seen them, and would do too well in the test",
            file=sys.stderr,
        )
    return result


def _trained_before(folder: Path, method: Method, test_fraction: float) -> set[str]:
    """Return the ids on the training side of the existing split, if its settings are the same."""
    if not (folder / "split.json").exists():
        return set()
    earlier = read_split(folder)
    if (earlier.method, earlier.test_fraction) != (method, test_fraction):
        return set()
    return {photo.id for photo in earlier.photos if photo.side == "train"}


def split_bins(
    bins: Mapping[str, Bin],
    left_out: Sequence[LeftOut],
    counts: range,
    *,
    method: Method,
    test_fraction: float,
) -> Split:
    """Assign each photo to a group and a side; `purge` leaves some photos out."""
    asins = {photo_id: found.asins for photo_id, found in bins.items()}
    groups = group_by_first_asin(asins) if method == "purge" else group_by_asin(asins)

    def side(photo_id: str) -> Side:
        # No group has such a name, so that this hash is independent of the other methods'.
        name = f"id-{photo_id}" if method == "random" else groups[photo_id]
        return side_of(name, test_fraction)

    photos = [
        Photo(photo_id, bins[photo_id].count, groups[photo_id], side(photo_id))
        for photo_id in sorted(bins)
    ]
    if method == "purge":
        tested = {asin for photo in photos if photo.side == "test" for asin in asins[photo.id]}
        kept = [
            photo for photo in photos if photo.side == "test" or tested.isdisjoint(asins[photo.id])
        ]
        gone = asins.keys() - {photo.id for photo in kept}
        left_out = [*left_out, *(LeftOut(photo_id, REASON_TESTED) for photo_id in gone)]
        photos = kept
    return Split(list(counts), method, test_fraction, photos, sorted(left_out))


def write_split(folder: Path, split: Split) -> None:
    """Write `split.csv`, with a line for each photo, and then `split.json`, with all else."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "count", "group", "side"])
    writer.writerows([one.id, one.count, one.group, one.side] for one in split.photos)
    write_atomic(folder / "split.csv", table.getvalue().encode())
    content = {
        "counts": split.counts,
        "method": split.method,
        "test_fraction": split.test_fraction,
        "left_out": by_reason(split.left_out),
    }
    write_atomic(folder / "split.json", to_json(content))


def read_split(folder: Path) -> Split:
    """Read what `split_folder` wrote; raises DataError if it is absent."""
    content = read_json(folder / "split.json", "run `python -m data_prep split` first")
    with (folder / "split.csv").open(newline="") as table:
        rows = csv.reader(table)
        next(rows)
        photos = [
            Photo(photo_id, int(count), intern(group), "test" if side == "test" else "train")
            for photo_id, count, group, side in rows
        ]
    return Split(
        content["counts"],
        content["method"],
        content["test_fraction"],
        photos,
        read_left_out(content["left_out"]),
    )


def read_bins(folder: Path, counts: range) -> tuple[dict[str, Bin], list[LeftOut]]:
    """Read the metadata of the selected photos; those that cannot be used are left out."""
    selection = read_json(folder / "selection.json", "run `python -m data_prep download` first")
    known = {one.id: one.reason for one in read_left_out(selection["left_out"])}
    bins: dict[str, Bin] = {}
    left_out: list[LeftOut] = []
    for photo_id in tqdm([*selection["photos"], *known], desc="split", unit=" photos"):
        try:
            bins[photo_id] = usable_bin(metadata_path(folder, photo_id).read_bytes(), counts)
        except FileNotFoundError:  # not fetched, or deleted by the user
            left_out.append(LeftOut(photo_id, known.get(photo_id, REASON_NO_METADATA)))
        except UnusableError as error:
            left_out.append(LeftOut(photo_id, str(error)))
    return bins, sorted(left_out)


def group_by_asin(asins: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Find the connected components over shared ASINs; returns photo id → name of its group.

    The name is the smallest ASIN of the component, or `photo-<id>` for a photo without ASINs.
    """
    parent: dict[str, str] = {}

    def root(asin: str) -> str:
        while parent[asin] != asin:
            parent[asin] = parent[parent[asin]]
            asin = parent[asin]
        return asin

    for together in asins.values():
        for asin in together:
            parent.setdefault(asin, asin)
            low, high = sorted((root(together[0]), root(asin)))
            parent[high] = low  # so the root is the smallest ASIN of its component
    return {
        photo_id: root(together[0]) if together else f"photo-{photo_id}"
        for photo_id, together in asins.items()
    }


def group_by_first_asin(asins: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return photo id → its smallest ASIN, or `photo-<id>` for a photo without ASINs."""
    return {
        photo_id: min(together) if together else f"photo-{photo_id}"
        for photo_id, together in asins.items()
    }


def side_of(group: str, test_fraction: float) -> Side:
    """Return the side of a group, which the SHA-256 of its name fixes for good."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    return "test" if share < test_fraction else "train"


def check_enough(photos: Iterable[Photo], counts: Iterable[int], min_photos: int) -> None:
    """Raise DataError unless each count is on both sides, and `min_photos` photos are left."""
    there = Counter((photo.side, photo.count) for photo in photos)
    if there.total() < min_photos:
        raise DataError(
            f"only {there.total():,} photos are left, --min-photos requires {min_photos:,}: "
            "download more photos"
        )
    for count in counts:
        for side in SIDES:
            if not there[side, count]:
                raise DataError(
                    f"no {side} photo with count {count} is left: "
                    "download more photos, or change --counts or --test-fraction"
                )


def twins(photos: Sequence[Photo]) -> int:
    """Count the test photos that share a product, directly or not, with a training photo."""
    trained = {photo.group for photo in photos if photo.side == "train"}
    return sum(photo.side == "test" and photo.group in trained for photo in photos)


def largest_group(photos: Sequence[Photo]) -> int:
    """Count the photos of the largest group."""
    return max(Counter(photo.group for photo in photos).values(), default=0)


def describe(photos: Sequence[Photo]) -> str:
    """Format the size of each side, and the share of each count, for the terminal."""
    lines = []
    for side in SIDES:
        counts = Counter(photo.count for photo in photos if photo.side == side)
        groups = len({photo.group for photo in photos if photo.side == side})
        shares = "  ".join(f"{c}: {n / counts.total():.1%}" for c, n in sorted(counts.items()))
        lines.append(
            f"{side:5}  {counts.total():,} photos ({counts.total() / len(photos):.1%}) "
            f"in {groups:,} groups   {shares}"
        )
    return "\n".join([*lines, *_warnings(photos)])


def _warnings(photos: Sequence[Photo]) -> list[str]:
    """Say what may make the test less meaningful than it looks."""
    warnings = []
    tested = sum(photo.side == "test" for photo in photos)
    if leaked := twins(photos):
        warnings.append(
            f"warning: {leaked:,} of {tested:,} test photos ({leaked / tested:.0%}) show a product "
            "that is in training as well, so test results will be too good; `--split group` "
            "prevents this"
        )
    largest = largest_group(photos)
    if largest > LARGE_GROUP * len(photos):
        warnings.append(
            f"warning: {largest:,} photos ({largest / len(photos):.0%}) are connected through "
            "shared products and go to the same side, so the sides may be far from "
            "--test-fraction; `--split purge --test-fraction 0.03` leaves out of training what "
            "connects it with the test"
        )
    return warnings
