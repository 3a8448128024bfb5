"""What the JPEG quality of shards costs in accuracy, and in bytes.

    python -m benchmarks.jpeg_quality --photos abid-224.tar
    python -m benchmarks.jpeg_quality --photos abid-224.tar --quick     try the command out

The same photos are packed at SIZE pixels with each quality, a head is trained on each packing,
with each seed, and judged as it serves: on photos that were never packed. Those are validation
photos, of the training side's products; the test side is not looked at. A quality is compared with
100, photo by photo, by what all seeds say on average. Tables in Markdown go to stdout.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import DATASET, VALIDATION, prepare
from benchmarks.training_report import describe_machine, difference, machine, table
from data_prep import pack as packing
from data_prep.folder import DataError, dataset_path
from infra.command import in_one_line, interruptible
from training.data import open_dataset
from training.export_int8 import compare, probabilities_of
from training.settings import whole_number
from training.task import split_validation

ARCH = "efficientnet_lite0"
SIZE = 192  # below that of the photos, so that each is resized and encoded
LOSSLESS = 100
QUALITIES = (LOSSLESS, 95, 90, 85, 75, 50)
QUICK = (LOSSLESS, 50)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One quality: bytes of a photo in a shard, and probabilities of the validation photos."""

    photo_bytes: float
    probabilities: NDArray[np.float32]  # mean over seeds, [photos, classes]


def pack(folder: Path, quality: int) -> Path:
    """Pack the folder's photos with this quality; returns the data set."""
    packing.JPEG_QUALITY = quality  # worker processes are forks
    name = f"quality-{quality}"
    packing.pack(folder, name, size=SIZE)
    return dataset_path(folder, name)


def photo_bytes(dataset: Path) -> float:
    """Of a photo's JPEG, on average."""
    photos = open_dataset(dataset).index("train")
    return sum(len(photos.jpeg(row)) for row in range(len(photos))) / len(photos)


def train(folder: Path, dataset: Path, seed: int) -> Path:
    """Train a head; returns the exported network."""
    output = folder / "runs" / f"{dataset.name}-{seed}"
    subprocess.run(
        [
            *(sys.executable, "-m", "training.train", "--data", str(dataset)),
            *("--weights", str(folder / "weights" / f"{ARCH}.pth"), "--output", str(output)),
            *("--arch", ARCH, "--size", str(SIZE), "--mirror", "yes", "--int8", "no"),
            *("--skip-test", "--validation-fraction", VALIDATION, "--seed", str(seed)),
            *("--checkpoint-dir", str(folder / "checkpoints" / dataset.name)),  # shared features
        ],
        check=True,
    )
    return output / "model" / "model.onnx"


def judge(folder: Path, quality: int, seeds: int) -> Judged:
    """Pack, train with each seed, and ask about validation photos that were never packed."""
    dataset = pack(folder, quality)
    models = [train(folder, dataset, seed) for seed in range(seeds)]
    photos = open_dataset(dataset_path(folder, DATASET)).index("train")
    _, held_out = split_validation(photos, float(VALIDATION))
    found = [probabilities_of(model, photos.subset(held_out), SIZE) for model in models]
    return Judged(photo_bytes=photo_bytes(dataset), probabilities=np.mean(found, axis=0))


def report(folder: Path, judged: dict[int, Judged]) -> str:
    """A table: each quality against the highest, with 95 % intervals of paired differences."""
    dataset = open_dataset(dataset_path(folder, DATASET))
    photos = dataset.index("train")
    _, held_out = split_validation(photos, float(VALIDATION))
    truth = photos.subset(held_out).counts
    best = judged[LOSSLESS].probabilities
    rows = []
    for quality, each in judged.items():
        found = compare(best, each.probabilities, truth, dataset.counts, "argmax")
        exact = np.array(dataset.counts)[each.probabilities.argmax(1)] == truth
        rows.append(
            [
                f"{quality}",
                f"{each.photo_bytes / 1000:.1f}",
                f"{exact.mean():.1%}",
                difference(found["exact_difference"], 100, 1),
                difference(found["cross_entropy_difference"], 1, 4),
            ]
        )
    header = ["quality", "KB a photo", "exact", "points against 100", "loss against 100"]
    return f"{len(truth):,} validation photos\n\n{table(header, rows)}"


@interruptible()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.jpeg_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--photos", type=Path, required=True, help="a tar laid out as the public bucket")
    flag("--folder", type=Path, default=Path(".quality"), help="all it writes (%(default)s)")
    flag("--seeds", type=whole_number, default=3, help="of the head (%(default)s)")
    flag("--quick", action="store_true", help="two qualities, one seed")
    args = parser.parse_args()
    try:
        prepare(args.folder, args.photos)
        judged = {
            quality: judge(args.folder, quality, 1 if args.quick else args.seeds)
            for quality in (QUICK if args.quick else QUALITIES)
        }
    except (DataError, OSError, tarfile.TarError) as error:
        sys.exit(f"error: {in_one_line(error)}")
    print(describe_machine(machine(os.cpu_count() or 1)))
    print(report(args.folder, judged))


if __name__ == "__main__":
    main()
