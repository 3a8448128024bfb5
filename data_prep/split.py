"""Photos → train and test, so that no product is seen on both sides.

A bin is photographed again after one item goes in or out; a random split would test
the network on bins that it was trained on. Photos that share a product (ASIN), directly
or through other photos, form one group, and a group goes to one side as a whole. The
side comes from a hash of the group's name alone: more photos later move no photo to the
other side, unless they join two groups into one.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from data_prep.folder import (
    REASON_NO_METADATA,
    REASON_NO_PHOTO,
    REASON_OUT_OF_RANGE,
    Bin,
    DataError,
    LeftOut,
    MetadataError,
    metadata_path,
    parse_metadata,
    photo_path,
    read_json,
    to_json,
    write_atomic,
)

Side = Literal["train", "test"]
SIDES: tuple[Side, ...] = ("train", "test")


@dataclass(frozen=True)
class Photo:
    """One photo of the dataset."""

    id: str
    count: int
    group: str
    side: Side


@dataclass(frozen=True)
class Split:
    """What `split.json` holds: every photo has a side or a reason."""

    counts: list[int]
    test_fraction: float
    photos: list[Photo]
    left_out: list[LeftOut]


def split_folder(
    folder: Path, counts: range, *, test_fraction: float = 0.2, min_photos: int = 1
) -> Split:
    """Split the photos of a working folder; writes `split.json` and returns its content.

    Raises DataError when too little is left.
    """
    (folder / "split.json").unlink(missing_ok=True)  # an older one, should this one fail
    bins, left_out = read_bins(folder, counts)
    groups = group_by_asin({photo_id: found.asins for photo_id, found in bins.items()})
    photos = [
        Photo(photo_id, found.count, groups[photo_id], side_of(groups[photo_id], test_fraction))
        for photo_id, found in sorted(bins.items())
    ]
    check_enough(photos, counts, min_photos)
    result = Split(list(counts), test_fraction, photos, left_out)
    write_atomic(folder / "split.json", to_json(asdict(result)))
    return result


def read_split(folder: Path) -> Split:
    """Read what `split_folder` wrote; raises DataError when it is absent."""
    content = read_json(folder / "split.json", "run `python -m data_prep split` first")
    return Split(
        content["counts"],
        content["test_fraction"],
        [Photo(**photo) for photo in content["photos"]],
        [LeftOut(**one) for one in content["left_out"]],
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
            elif not photo_path(folder, photo_id).exists():
                left_out[photo_id] = REASON_NO_PHOTO
            else:
                bins[photo_id] = found
    return bins, sorted(LeftOut(photo_id, reason) for photo_id, reason in left_out.items())


def _selected(folder: Path) -> dict[str, str | None]:
    """Ids to look at → the reason for leaving one out, where it is known already."""
    selection = read_json(folder / "selection.json", "run `python -m data_prep download` first")
    known: dict[str, str | None] = {one["id"]: one["reason"] for one in selection["left_out"]}
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
    return "\n".join(lines)
