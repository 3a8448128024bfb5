"""From the probabilities of the counts to one count."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Decision = Literal["argmax", "expected", "median"]
DECISIONS: tuple[Decision, ...] = ("argmax", "expected", "median")


def decide(
    probabilities: NDArray[np.float32], counts: Sequence[int], decision: Decision
) -> NDArray[np.int64]:
    """One count [N] for each photo, from its `probabilities` [N, K] of `counts` (ascending).

    If the probabilities hold, `argmax`, the most probable count, is most often right; `median`
    has the least absolute error; `expected`, the count nearest to the mean, the least squared
    error. Of two counts as good, the lower. Raises ValueError for another decision.
    """
    classes = np.array(counts)
    chosen: NDArray[np.int64]
    if decision == "argmax":
        chosen = probabilities.argmax(axis=1)
    elif decision == "expected":
        chosen = abs((probabilities.astype(np.float64) @ classes)[:, None] - classes).argmin(axis=1)
    elif decision == "median":
        up_to = probabilities.astype(np.float64).cumsum(axis=1)
        chosen = (up_to >= up_to[:, -1:] / 2).argmax(axis=1)
    else:
        raise ValueError(f"no decision is called {decision!r}: argmax, expected or median")
    return classes[chosen]
