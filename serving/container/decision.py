"""Rules that choose one count from the probabilities of all counts."""

from collections.abc import Sequence
from typing import Literal, assert_never, get_args

import numpy as np
from numpy.typing import NDArray

Decision = Literal["argmax", "mean", "median"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)


def decide(
    probabilities: NDArray[np.float32], counts: Sequence[int], decision: Decision
) -> NDArray[np.int64]:
    """Choose counts [N], given `probabilities` [N, K] of the `counts` [K] (ascending).

    If the probabilities are calibrated, `argmax`, the most probable count, is most often right;
    `median` has the least absolute error; `mean`, the count nearest to the mean, has the least
    squared error. Ties go to the lower count.
    """
    classes = np.array(counts)
    chosen: NDArray[np.int64]
    if decision == "argmax":
        chosen = probabilities.argmax(axis=1)
    elif decision == "mean":
        chosen = abs((probabilities.astype(np.float64) @ classes)[:, None] - classes).argmin(axis=1)
    elif decision == "median":
        up_to = probabilities.astype(np.float64).cumsum(axis=1)
        chosen = (up_to >= up_to[:, -1:] / 2).argmax(axis=1)
    else:
        assert_never(decision)
    return classes[chosen]
