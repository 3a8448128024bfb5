"""Photos → train and test, so that no product is seen on both sides.

A bin is photographed again after one item goes in or out; a random split tests the
network on bins that it was trained on. So photos that share a product (ASIN), directly
or through other photos, form one group, and a group goes to one side as a whole. The
side comes from a hash of the group's name alone, its smallest product: more photos later move no
photo to the other side, unless they join its group and bring a smaller product, or another group.
`split_folder` says when that has happened.

Of very many photos most may hang together, and one group cannot be on two sides. Then `purge`:
the side comes from the photo's first product alone, and photos that share any product with a test
photo are left out of training. `random` draws photo by photo, for comparison.
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
from typing import Literal, get_args

from tqdm import tqdm

from common.files import write_atomic
from data_prep.folder import (
    REASON_NO_METADATA,
    REASON_OUT_OF_RANGE,
    REASON_TESTED,
    Bin,
    DataError,
    LeftOut,
    MetadataError,
    by_reason,
    metadata_path,
    parse_metadata,
    read_json,
    read_left_out,
    to_json,
)

Side = Literal["train", "test"]
SIDES: tuple[Side, ...] = ("train", "test")
Method = Literal["group", "purge", "random"]
LARGE_GROUP = 0.1  # share of the photos in one group, from which on it is worth a warning
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo of the dataset."""

    id: str
    count: int
    group: str
    side: Side


@dataclass(frozen=True)
class Split:
    """What `split.json` and `split.csv` hold: every photo has a side or a reason."""

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
    """Split the photos of a working folder; writes `split.json` and `split.csv`, returns both.

    Raises DataError when too little is left.
    """
    trained = _trained_before(folder, method, test_fraction)
    (folder / "split.json").unlink(missing_ok=True)  # an older one, should this one fail
    bins, left_out = read_bins(folder, counts)
    result = split_bins(bins, left_out, counts, method=method, test_fraction=test_fraction)
    check_enough(result.photos, counts, min_photos)
    write_split(folder, result)
    if moved := sum(photo.side == "test" and photo.id in trained for photo in result.photos):
        print(
            f"warning: {moved:,} photos were in train and are in test now, as others joined their "
            "groups: the test flatters models that were trained before",
            file=sys.stderr,
        )
    return result


def _trained_before(folder: Path, method: Method, test_fraction: float) -> set[str]:
    """Ids of the training side of the split that is there, if it was made in the same way."""
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
    """Give each photo its group and its side; `purge` leaves some out."""
    asins = {photo_id: found.asins for photo_id, found in bins.items()}
    groups = group_by_first_asin(asins) if method == "purge" else group_by_asin(asins)

    def side(photo_id: str) -> Side:
        # An id is no group's name, so that the methods draw from hashes of their own.
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
    """`split.csv` has a line for each photo; `split.json`, written last, has all else."""
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
    """Read what `split_folder` wrote; raises DataError when it is absent."""
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
    """Read the metadata of the selected ids; those without a usable one are left out."""
    bins: dict[str, Bin] = {}
    left_out: dict[str, str] = {}
    for photo_id, known_reason in tqdm(_selected(folder).items(), desc="split", unit=" photos"):
        try:
            found = parse_metadata(metadata_path(folder, photo_id).read_bytes())
        except FileNotFoundError:
            left_out[photo_id] = known_reason or REASON_NO_METADATA  # removed by hand
        except MetadataError as error:
            left_out[photo_id] = str(error)
        else:
            if found.count not in counts:
                left_out[photo_id] = REASON_OUT_OF_RANGE
            else:
                bins[photo_id] = found
    return bins, sorted(LeftOut(photo_id, reason) for photo_id, reason in left_out.items())


def _selected(folder: Path) -> dict[str, str | None]:
    """Ids to look at → the reason for leaving one out, where it is known already."""
    selection = read_json(folder / "selection.json", "run `python -m data_prep download` first")
    known: dict[str, str | None] = {
        one.id: one.reason for one in read_left_out(selection["left_out"])
    }
    return dict.fromkeys(selection["photos"]) | known


def group_by_asin(asins: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Photo id → name of its group: the connected components over shared ASINs.

    The name is the smallest ASIN of the component, or `photo-<id>` for one without any.
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
            parent[high] = low  # so that a root is the smallest of its component
    return {
        photo_id: root(together[0]) if together else f"photo-{photo_id}"
        for photo_id, together in asins.items()
    }


def group_by_first_asin(asins: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Photo id → its smallest ASIN, or `photo-<id>` for one without any."""
    return {
        photo_id: min(together) if together else f"photo-{photo_id}"
        for photo_id, together in asins.items()
    }


def side_of(group: str, test_fraction: float) -> Side:
    """The side of a group, fixed for ever by the SHA-256 of its name."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    return "test" if share < test_fraction else "train"


def check_enough(photos: Iterable[Photo], counts: Iterable[int], min_photos: int) -> None:
    """Raise DataError unless every count is on both sides, in `min_photos` photos or more."""
    there = Counter((photo.side, photo.count) for photo in photos)
    if there.total() < min_photos:
        raise DataError(
            f"only {there.total():,} photos are left, --min-photos asks for {min_photos:,}: "
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
    """Number of test photos that share a product with a training photo, directly or not."""
    trained = {photo.group for photo in photos if photo.side == "train"}
    return sum(photo.side == "test" and photo.group in trained for photo in photos)


def largest_group(photos: Sequence[Photo]) -> int:
    """Number of photos in the largest group."""
    return max(Counter(photo.group for photo in photos).values(), default=0)


def describe(photos: Sequence[Photo]) -> str:
    """A small table: photos of each side, and the share of each count, for the terminal."""
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
    """What may make the test say less than it seems to."""
    warnings = []
    tested = sum(photo.side == "test" for photo in photos)
    if there := twins(photos):
        warnings.append(
            f"warning: {there:,} of {tested:,} test photos ({there / tested:.0%}) show a product "
            "that training sees: the test flatters the model; that of `--split group` does not"
        )
    largest = largest_group(photos)
    if largest > LARGE_GROUP * len(photos):
        warnings.append(
            f"warning: {largest:,} photos ({largest / len(photos):.0%}) hang together by their "
            "products and go to one side: the sides' shares may be far from --test-fraction. "
            "`--split purge --test-fraction 0.03` leaves out what ties training to the test"
        )
    return warnings
