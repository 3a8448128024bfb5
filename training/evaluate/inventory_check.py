"""How well the probabilities reveal wrong inventory records."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate.metrics import BOOTSTRAP_SAMPLES, interval_of

WRONG_SHARE = 0.1  # assumed share of wrong records
LOOKED_AT = (0.05, 0.1, 0.2)  # shares of the bins that are checked by hand


def check_inventory(
    probabilities: NDArray[np.float32],
    truth: NDArray[np.int64],
    counts: list[int],
    *,
    ids: Sequence[str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """Evaluate how well records that are off by one are distinguished from correct ones.

    Takes, for N photos, `probabilities` [N, K] of `counts`, the true counts `truth` [N], ids and
    product groups. Evaluates the photos that have a wrong record (see `wrong_records`), each with
    this record and with the correct one, its true count. The suspicion of a record is
    1 − P(record).

    `auroc` is the probability that a wrong record is more suspicious than a correct one; ties count
    half (Mann-Whitney). `found` is the share of the wrong records among the 5, 10 and 20 % most
    suspicious bins, if WRONG_SHARE of all records are wrong. Instead of drawing the wrong ones at
    random, wrong records get a weight of 0.1 and correct ones of 0.9, which gives the mean over all
    draws. Checking bins in random order would find the share that is checked. Intervals are 95 %
    percentile bootstrap intervals over product groups, as photos of one bin are not independent.

    If no photo can be evaluated, returns only `photos`, which is 0.
    """
    wrong = wrong_records(ids, groups, truth)
    if not wrong:
        return {"photos": 0}
    rows = np.array(list(wrong))
    records = np.stack([truth[rows], list(wrong.values())])
    probable = probabilities[rows, np.searchsorted(np.array(counts), records)]
    # Rank 0 is the most suspicious one; ties share a rank.
    correct_ranks, wrong_ranks = np.unique(probable, return_inverse=True)[1].reshape(records.shape)
    names, of_photo = np.unique([groups[row] for row in rows], return_inverse=True)
    total = len(names)

    def figures(times: NDArray[np.int64]) -> list[float]:
        """Return AUROC and shares found if the photos of group g occur `times[g]` times."""
        correct, wrong = (
            np.bincount(ranks, times[of_photo], records.size).astype(np.float64)
            for ranks in (correct_ranks, wrong_ranks)
        )
        found = (share_found(correct, wrong, share) for share in LOOKED_AT)
        return [auroc(correct, wrong), *found]

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
    """Return row of a photo → wrong record of its bin, for the photos that have one.

    The wrong record is the count of a neighbouring photo with one item more or fewer. A bin is
    photographed again after an item was added or removed; the two photos have consecutive ids and
    the same product group. If both neighbours qualify, a hash of the id chooses one.
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
            choice = hashlib.sha256(f"wrong record:{photo_id}".encode()).digest()[0]
            records[row] = candidates[choice % len(candidates)]
    return records


def neighbours(photo_id: str) -> list[str]:
    """Return the next and the previous id as strings, in the same width.

    `00001` is followed by `00002`, and `999` by `1000`; `1000` is preceded by `0999` or `999`. Ids
    that are not numbers have no neighbours.
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


def auroc(correct: NDArray[np.float64], wrong: NDArray[np.float64]) -> float:
    """Return the probability that a wrong record ranks before a correct one; ties count half.

    `correct` and `wrong` are the numbers of records at each rank, the most suspicious first.
    """
    behind = correct.sum() - correct.cumsum() + correct / 2
    return float((wrong * behind).sum() / (wrong.sum() * correct.sum()))


def share_found(
    correct: NDArray[np.float64], wrong: NDArray[np.float64], looked_at: float
) -> float:
    """Return the share of wrong records within the `looked_at` most suspicious records.

    Arguments are those of `auroc`. A rank that is checked in part counts in proportion.
    """
    checked = (correct * (1 - WRONG_SHARE) + wrong * WRONG_SHARE).cumsum()
    found = wrong.cumsum()
    return float(np.interp(looked_at, np.r_[0, checked] / checked[-1], np.r_[0, found] / found[-1]))
