"""What the counts are used for: how well wrong inventory records are found."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate.metrics import BOOTSTRAP_SAMPLES, interval_of

WRONG_SHARE = 0.1  # of the records
LOOKED_AT = (0.05, 0.1, 0.2)  # shares of the bins that people have time for


def check_inventory(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    counts: list[int],
    *,
    ids: Sequence[str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """How well records that are off by one are told from right ones.

    For N photos: `probabilities` [N, K] of `counts`, true counts `truth` [N], ids and product
    groups. The photos that have a wrong record (`wrong_records`) take part, each with that one
    and with its right record, the true count. A record is as suspicious as it is improbable:
    1 − P(record).

    `auroc` is the chance that a wrong record is more suspicious than a right one, ties half
    (Mann-Whitney). `found` is the share of the wrong records that people find who look at the
    5, 10 and 20 % most suspicious bins, where a tenth of the records (WRONG_SHARE) is wrong. No
    tenth is drawn: wrong records weigh 0.1 and right ones 0.9, for the mean over all tenths.
    Looking at bins in any order finds the share that is looked at. Intervals are percentile
    bootstraps over product groups, 95 %, as photos of one bin lend each other their counts.

    Where no photo takes part, `photos` is 0 and the other figures are left out.
    """
    wrong = wrong_records(ids, groups, truth)
    if not wrong:
        return {"photos": 0}
    rows = np.array(list(wrong))
    records = np.stack([truth[rows], list(wrong.values())])
    probable = probabilities[rows, np.searchsorted(np.array(counts), records)]
    # Ranks, 0 for the most suspicious; one rank for all that tie.
    right_ranks, wrong_ranks = np.unique(probable, return_inverse=True)[1].reshape(records.shape)
    names, of_photo = np.unique([groups[row] for row in rows], return_inverse=True)
    total = len(names)

    def figures(times: NDArray[np.int64]) -> list[float]:
        """AUROC, then the shares found, when the photos of group g are there `times[g]` times."""
        right, wrong = (
            np.bincount(ranks, times[of_photo], records.size).astype(np.float64)
            for ranks in (right_ranks, wrong_ranks)
        )
        return [auroc(right, wrong), *(share_found(right, wrong, share) for share in LOOKED_AT)]

    generator = np.random.default_rng(0)
    draws = [
        figures(np.bincount(generator.integers(total, size=total), minlength=total))
        for _ in range(BOOTSTRAP_SAMPLES)
    ]
    values = figures(np.ones(total, np.int64))
    area, *found = map(interval_of, values, zip(*draws, strict=True))
    return {
        "photos": len(rows),
        "groups": total,
        "auroc": area,
        "wrong_share": WRONG_SHARE,
        "found": [{"looked_at": share, **of} for share, of in zip(LOOKED_AT, found, strict=True)],
    }


def wrong_records(
    ids: Sequence[str], groups: Sequence[str], truth: NDArray[np.int64]
) -> dict[int, int]:
    """Row of a photo → the count that a wrong record of its bin says.

    That is the count of a neighbouring photo, one item more or fewer: a bin is photographed again
    after an item went in or out, and the two ids follow each other and share a product group.
    Where both neighbours will do, a hash of the id chooses. Other photos are left out.
    """
    rows = {photo_id: row for row, photo_id in enumerate(ids)}
    records = {}
    for photo_id, row in rows.items():
        candidates = [
            int(truth[other])
            for neighbour in neighbours(photo_id)
            if (other := rows.get(neighbour)) is not None
            and groups[other] == groups[row]
            and abs(truth[other] - truth[row]) == 1
        ]
        if candidates:
            coin = hashlib.sha256(f"wrong record:{photo_id}".encode()).digest()[0]
            records[row] = candidates[coin % len(candidates)]
    return records


def neighbours(photo_id: str) -> list[str]:
    """The ids just before and after, as strings: `00002` and not `2` follows `00001`.

    After `999` comes `1000`; before `1000` come `0999` and `999`. An id that is no number has no
    neighbours.
    """
    if not (photo_id.isascii() and photo_id.isdecimal()):
        return []
    number, width = int(photo_id), len(photo_id)
    found = [str(number + 1).zfill(width)]
    if number > 0:
        before = str(number - 1)
        found.append(before.zfill(width))
        if len(before) < width and photo_id[0] != "0":
            found.append(before)
    return found


def auroc(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    """The chance that a wrong record ranks before a right one, ties half.

    `right` and `wrong` are the numbers of such records at each rank, the most suspicious first.
    """
    behind = right.sum() - right.cumsum() + right / 2
    return float((wrong * behind).sum() / (wrong.sum() * right.sum()))


def share_found(right: NDArray[np.float64], wrong: NDArray[np.float64], looked_at: float) -> float:
    """The share of wrong records among the `looked_at` most suspicious; arguments as for `auroc`.

    Of records that tie, those looked at are as often wrong as the others.
    """
    looked = (right * (1 - WRONG_SHARE) + wrong * WRONG_SHARE).cumsum()
    found = wrong.cumsum()
    return float(np.interp(looked_at, np.r_[0, looked] / looked[-1], np.r_[0, found] / found[-1]))
