"""How many photos per second fine-tuning takes on this machine, in float32 and in bfloat16.

Photos are synthetic, and the weights of ResNet50 are random: both take as long as real ones.
Every measurement runs in a process of its own, in turn with the others. The tables are printed as
Markdown. Let nothing else run meanwhile.

    python -m benchmarks.training
    python -m benchmarks.training --quick    # try the command out
"""

import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from benchmarks.measure import BenchmarkError, compare, describe, describe_machine
from benchmarks.training.steps import Precision, prepare_photos, prepare_weights, run_steps
from common.choices import Arch
from common.command import in_one_line, interruptible
from common.dataset import DatasetError
from common.flags import PositiveInt, Switch, command_line
from data_prep.folder import DataError
from serving.container.cores import available_cores

ARCHITECTURES: tuple[Arch, ...] = ("resnet50", "efficientnet_lite0")
PHOTOS, SIZE, BATCH_SIZE = 720, 224, 32  # three in five are trained on: a dozen steps
QUICK_PHOTOS, QUICK_SIZE, QUICK_BATCH_SIZE = 120, 64, 8
GPU_FACTOR = 5  # a GPU takes a step in milliseconds, so it gets more of them
CORES = available_cores()

APP = command_line("python -m benchmarks.training", __doc__)


@APP.default
def measure(
    *, repeats: PositiveInt | None = None, threads: PositiveInt = CORES, quick: Switch = False
) -> None:
    """Measure each backbone in each precision.

    Parameters
    ----------
    repeats
        Number of rounds [default: 3, with --quick 1].
    threads
        CPU threads of PyTorch and of the loader; by default one per core.
    quick
        Measure few, small photos in one round, to try the command out.
    """
    print(describe_machine(), flush=True)
    photos, size, batch_size = (
        (QUICK_PHOTOS, QUICK_SIZE, QUICK_BATCH_SIZE) if quick else (PHOTOS, SIZE, BATCH_SIZE)
    )
    if torch.cuda.is_available():
        photos *= GPU_FACTOR
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare_photos(folder, photos, size)
        for arch in ARCHITECTURES:
            weights = prepare_weights(folder / "weights", arch)
            run = partial(run_steps, data, weights, arch, batch_size=batch_size, threads=threads)
            sides = {
                precision: partial(run, precision=precision) for precision in get_args(Precision)
            }
            runs = compare(arch, sides, repeats or (1 if quick else 3))
            counted = runs["float32"][0].photos
            print(f"\n### {arch}: {counted} photos, {batch_size} in a step, {threads} threads\n")
            print(describe(runs, "float32"), flush=True)


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the measured process ends as well
    try:
        APP(arguments)
    except (BenchmarkError, DataError, DatasetError, OSError) as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    main()
