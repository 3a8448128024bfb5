"""What can be seen in the photos: counts by eye beside the recorded ones, and beside a model's.

    python -m benchmarks.accuracy_by_eye [--try NAME]

Before any label was looked at, the items in 86 validation photos were counted by eye: all those
of which there is a photo of native size. accuracy_by_eye.json has these counts by id. A model's
answers are those that `benchmarks.accuracy_ideas NAME` left, on the same photos.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import COUNTS
from benchmarks.accuracy_answers import MAJORITY, answers_of, open_sides
from training.data import DatasetError
from training.metrics import evaluate

BY_EYE = Path(__file__).with_suffix(".json")


def judged(counted: NDArray[np.int64], recorded: NDArray[np.int64]) -> dict[str, Any]:
    """metrics.json's figures of answers without probabilities."""
    certain = np.eye(len(COUNTS), dtype=np.float32)[counted - 1]
    return evaluate(certain, recorded, list(COUNTS), MAJORITY)


def line(name: str, metrics: dict[str, Any]) -> str:
    exact = metrics["accuracy"]
    return (
        f"{name}: exact {exact['value']:.1%} ({exact['low']:.1%}–{exact['high']:.1%}), "
        f"within one {metrics['within_one']:.1%}, MAE {metrics['mae']:.2f}, "
        f"RMSE {metrics['rmse']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy_by_eye",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".accuracy"), help="default: %(default)s"
    )
    parser.add_argument("--try", dest="name", help="a row of accuracy_ideas to compare with")
    args = parser.parse_args()
    try:
        compare(args.folder, args.name)
    except (DatasetError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def compare(folder: Path, name: str | None) -> None:
    """Print what the eye counted beside the records, and beside the answers of the try `name`."""
    by_eye: dict[str, int] = json.loads(BY_EYE.read_text())
    _, photos = open_sides(folder)
    rows = [row for row, photo_id in enumerate(photos.ids) if photo_id in by_eye]
    recorded = photos.counts[rows]
    counted = np.array([by_eye[photos.ids[row]] for row in rows])
    print(f"{len(rows)} photos, of which the eye sees fewer items than recorded in "
          f"{(counted < recorded).sum()}, more in {(counted > recorded).sum()}")  # fmt: skip
    print(line("by eye", judged(counted, recorded)))
    if name:
        answers = np.load(answers_of(folder, name))[rows].argmax(1) + 1
        print(line(name, judged(answers, recorded)))


if __name__ == "__main__":
    main()
