"""What tries answer on the validation photos: judged, and the answers of several averaged.

    python -m benchmarks.accuracy_answers NAME NAME …     add a row: their mean answers, as one's

A try of benchmarks.accuracy_ideas leaves FOLDER/ideas/NAME.npy: logarithms of probabilities,
float32 [photos, classes], not calibrated.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import COUNTS, DATASET, ROWS, VALIDATION, figures
from benchmarks.training_report import machine
from training.calibration import fit_temperature, softmax
from training.data import DatasetError, PhotoIndex, open_dataset
from training.inventory_check import check_inventory
from training.metrics import evaluate
from training.task import split_validation

MAJORITY = 3  # the commonest count


def open_sides(folder: Path) -> tuple[PhotoIndex, PhotoIndex]:
    """The photos to train on, and those to judge a try on. Raises DatasetError."""
    photos = open_dataset(folder / "datasets" / DATASET).index("train")
    fit, held_out = split_validation(photos, float(VALIDATION))
    return photos.subset(fit), photos.subset(held_out)


def answers_of(folder: Path, name: str) -> Path:
    """The file of a try's answers."""
    return folder / "ideas" / f"{name}.npy"


def judge(answers: NDArray[np.float32], photos: PhotoIndex) -> dict[str, Any]:
    """Figures of a row, and the temperature that calibrates `answers`."""
    counts = list(COUNTS)
    temperature = fit_temperature(answers, np.searchsorted(counts, photos.counts))
    probabilities = softmax(answers, temperature)
    judged = evaluate(probabilities, photos.counts, counts, MAJORITY)
    judged["inventory"] = check_inventory(
        probabilities, photos.counts, counts, ids=photos.ids, groups=photos.groups
    )
    return {**figures(judged), "temperature": temperature}


def average(folder: Path, names: list[str]) -> None:
    """Add the row of several tries together; it took what they took."""
    _, photos = open_sides(folder)
    answers = np.mean([np.load(answers_of(folder, name)) for name in names], axis=0)
    known = {row["try"]: row for row in map(json.loads, ROWS.read_text().splitlines())}
    line = {
        "try": f"{len(names)} together",
        "flags": f"accuracy_answers {' '.join(names)}",
        "seed": 0,
        "side": "validation",
        **judge(answers, photos),
        "minutes": round(sum(known[name]["minutes"] for name in names), 1),
        "machine": machine(os.cpu_count() or 1),
    }
    with ROWS.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy_answers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="of a try that has a row")
    parser.add_argument(
        "--folder", type=Path, default=Path(".accuracy"), help="default: %(default)s"
    )
    args = parser.parse_args()
    try:
        average(args.folder, args.names)
    except (DatasetError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        sys.exit(f"error: {ROWS.name} has no row of {error}")


if __name__ == "__main__":
    main()
