"""Everything about a training run that can be chosen. Imports nothing heavy: the launcher and the
machine read flags here without loading PyTorch."""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INTERRUPTED = 75  # exit code of training.train, EX_TEMPFAIL: the same command goes on
CHUNK_PHOTOS = 256  # features are kept in chunks of a few seconds of work


def seconds(name: str, usual: float) -> float:
    """A time in a machine's life: `usual`, or what a rehearsal sets as SPOT_<name>_SECONDS."""
    return float(os.environ.get(f"SPOT_{name}_SECONDS", usual))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a backbone expects: its name in timm, and the normalisation of its pixels (0–255)."""

    timm_name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


ARCHITECTURES = {
    # ImageNet's mean and standard deviation per channel, times 255.
    "resnet50": Architecture(
        timm_name="resnet50",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
    # (x − 127) / 128: how the published weights were trained (github.com/tensorflow/tpu).
    "efficientnet_lite0": Architecture(
        timm_name="tf_efficientnet_lite0",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the weights, given data and machine; kept in every snapshot."""

    arch: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    hidden: int
    dropout: float
    validation_fraction: float
    seed: int
    threads: int


def whole_number(text: str) -> int:
    """A flag's value, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def number_from_zero(*, included: bool, below: float = math.inf) -> Callable[[str], float]:
    """The type of a flag: a number from 0, itself allowed if `included`, to less than `below`."""

    def number(text: str) -> float:
        value = float(text)
        if not 0 <= value < below or (value == 0 and not included):
            least = "0 or more" if included else "above 0"
            most = f"below {below:g}" if math.isfinite(below) else "finite"
            raise argparse.ArgumentTypeError(f"must be {least} and {most}, not {text}")
        return value

    return number


def parse_arguments(
    arguments: list[str] | None = None, *, description: str | None = None
) -> argparse.Namespace:
    """The flags of training.train."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--data", type=Path, required=True, help="folder of a packed data set (data_prep pack)")
    flag("--weights", type=Path, required=True, help="pretrained backbone (data_prep weights)")
    flag("--output", type=Path, required=True, help="metrics, plot and model/ go here")
    flag(
        "--arch",
        choices=sorted(ARCHITECTURES),
        default="resnet50",
        help="backbone (default: %(default)s)",
    )
    flag("--checkpoint-dir", type=Path, help="features and snapshots (default: OUTPUT/checkpoints)")
    flag("--run-id", default="local", help="noted in the model (default: %(default)s)")
    flag(
        "--epochs", type=whole_number, default=20, help="passes of the head (default: %(default)s)"
    )
    flag(
        "--batch-size", type=whole_number, default=256, help="photos a step (default: %(default)s)"
    )
    flag(
        "--learning-rate",
        type=number_from_zero(included=False),
        default=5e-4,
        help="peak (default: %(default)s)",
    )
    flag(
        "--weight-decay",
        type=number_from_zero(included=True),
        default=0.3,
        help="of AdamW (default: %(default)s)",
    )
    flag(
        "--hidden", type=whole_number, default=512, help="units of the head (default: %(default)s)"
    )
    flag(
        "--dropout",
        type=number_from_zero(included=True, below=1),
        default=0.7,
        help="in the head (default: %(default)s)",
    )
    flag(
        "--validation-fraction",
        type=number_from_zero(included=False, below=1),
        default=0.1,
        help="share of the training products held out while training (default: %(default)s)",
    )
    flag("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
    flag(
        "--threads",
        type=whole_number,
        default=os.cpu_count(),
        help="CPU threads; weights are reproducible for one number (default: all, %(default)s)",
    )
    flag(
        "--snapshot-seconds",
        type=number_from_zero(included=True),
        default=30,
        help="time between snapshots (default: %(default)s)",
    )
    return parser.parse_args(arguments)
