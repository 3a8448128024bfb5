"""Everything about a training run that can be chosen. Imports nothing heavy: the launcher and the
machine read flags here without loading PyTorch."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serving.container.cores import available_cores
from serving.container.decision import DECISIONS, Decision

INTERRUPTED = 75  # exit code of training.train, EX_TEMPFAIL: the same command goes on
SNAPSHOTS_KEPT = 2  # an older one is there if the newest turns out damaged
CHUNK_PHOTOS = 256  # features are kept in chunks of a few seconds of work
SWITCHES = ("skip_test", "profile")  # flags without a value


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
    "efficientnet_lite2": Architecture(
        timm_name="tf_efficientnet_lite2",
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the weights, given data and machine; kept in every snapshot."""

    mode: str
    arch: str
    size: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    hidden: int
    dropout: float
    label_sigma: float
    ema_decay: float
    ensemble_size: int
    batch_norm: str
    precision: str
    backbone_precision: Literal["float32", "bfloat16", "int8"]
    mirror: str
    decision: Decision
    validation_fraction: float
    eval_every: int
    train_on: str
    seed: int


# What a flag that is not given stands for, by mode. That of head was chosen by cross-validation on
# the training side; that of finetune on validation, see benchmarks/accuracy/README.md.
RECIPES: dict[str, dict[str, int | float | str]] = {
    "head": {
        "epochs": 20,
        "batch_size": 256,
        "learning_rate": 5e-4,
        "warmup": 0.3,
        "weight_decay": 0.3,
        "hidden": 512,
        "dropout": 0.7,
        "label_sigma": 0.0,
        "ema_decay": 0.0,
    },
    "finetune": {
        "epochs": 5,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "warmup": 0.05,
        "weight_decay": 0.05,
        "hidden": 0,
        "dropout": 0.3,
        "label_sigma": 0.5,
        "ema_decay": 0.998,
    },
}


def whole_number(text: str) -> int:
    """A flag's value, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def whole_number_or_zero(text: str) -> int:
    """A flag's value, 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
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
    arguments: list[str] | None = None,
    *,
    prog: str = "python -m training.train",
    description: str | None = None,
) -> argparse.Namespace:
    """The flags of training.train; `prog` is who speaks when one is wrong.

    What is not given comes from --settings or from the recipe of the mode, the first that has it.
    """
    parser = _make_parser(prog, description)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        flags = expand_settings(given)
    except ValueError as error:
        parser.error(str(error))
    args = parser.parse_args(flags)
    for name, value in RECIPES[args.mode].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def given_settings(arguments: list[str]) -> dict[str, Any]:
    """By name, the flags of training.train that are in `arguments`, and no defaults: those depend
    on the mode and on the machine that is asked."""
    parser, absent = _make_parser(), object()
    blank = argparse.Namespace(**{action.dest: absent for action in parser._actions})
    given = vars(parser.parse_args(arguments, blank))
    return {name: value for name, value in given.items() if value is not absent}


def _make_parser(
    prog: str = "python -m training.train", description: str | None = None
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_places(parser.add_argument_group("places"))
    _add_recipe(parser.add_argument_group("recipe (what decides the weights)"))
    _add_machine(parser.add_argument_group("machine"))
    return parser


def as_flags(values: dict[str, Any]) -> list[str]:
    """{"batch_size": 64, "profile": True} → ["--batch-size=64", "--profile"]; False is left out."""
    flags = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if name in SWITCHES and str(value).lower() in ("true", "false"):  # SageMaker's are text
            flags += [flag] if str(value).lower() == "true" else []
        else:
            flags.append(f"{flag}={value}")
    return flags


def expand_settings(arguments: list[str]) -> list[str]:
    """`arguments` with `--settings FILE` replaced by the flags in the file, before all others.

    Raises ValueError when the file cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings", type=Path)
    found, rest = parser.parse_known_args(arguments)
    if found.settings is None:
        return rest
    try:
        values = json.loads(found.settings.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"--settings: no file {found.settings}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--settings: {found.settings} is not readable as JSON ({error})"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"--settings: {found.settings} holds no JSON object")
    return [*as_flags(values), *rest]


def _add_places(group: "argparse._ArgumentGroup") -> None:
    flag = group.add_argument
    flag("--data", type=Path, required=True, help="folder of a packed data set (data_prep pack)")
    flag(
        "--weights",
        type=Path,
        required=True,
        help="pretrained backbone (data_prep weights), or weights.pth of an earlier run, whose "
        "head and ensemble are taken over as well where they are like this run's",
    )
    flag("--output", type=Path, required=True, help="metrics, pictures and report go here")
    flag("--model-dir", type=Path, help="what is served goes here (default: OUTPUT/model)")
    flag("--checkpoint-dir", type=Path, help="features and snapshots (default: OUTPUT/checkpoints)")
    flag(
        "--skip-test",
        action="store_true",
        help="leave the test photos alone, to choose settings by validation",
    )
    flag(
        "--int8",
        choices=("auto", "no"),
        default="auto",
        help="auto: also export the model in int8, to be served if it does as well on validation, "
        "where this machine can judge that (default: %(default)s)",
    )
    flag("--run-id", default="local", help="noted in the model (default: %(default)s)")


def _add_recipe(group: "argparse._ArgumentGroup") -> None:
    flag = group.add_argument
    flag(
        "--settings",
        type=Path,
        metavar="FILE",
        help="JSON with what stands for flags that are not given, such as a search's best.json",
    )

    def by_mode(name: str, type_: Callable[[str], int | float], text: str) -> None:
        key = name.removeprefix("--").replace("-", "_")
        usual = ", ".join(f"{mode}: {recipe[key]}" for mode, recipe in RECIPES.items())
        flag(name, type=type_, help=f"{text} (default: {usual})")

    positive, from_zero = number_from_zero(included=False), number_from_zero(included=True)
    share = number_from_zero(included=True, below=1)
    flag(
        "--mode",
        choices=sorted(RECIPES, reverse=True),
        default="head",
        help="head: the backbone runs once, a new head trains on its features, in minutes; "
        "finetune: every layer trains (default: %(default)s)",
    )
    flag(
        "--arch",
        choices=sorted(ARCHITECTURES),
        default="resnet50",
        help="backbone (default: %(default)s)",
    )
    flag("--size", type=whole_number, help="pixels a side of the input (default: the data set's)")
    by_mode("--epochs", whole_number, "passes over the photos")
    by_mode("--batch-size", whole_number, "photos a step")
    by_mode("--learning-rate", positive, "peak")
    by_mode("--warmup", share, "share of the steps before the peak")
    by_mode("--weight-decay", from_zero, "of AdamW")
    by_mode("--hidden", whole_number_or_zero, "units of the head's hidden layer, 0 for none")
    by_mode("--dropout", share, "in the head")
    by_mode("--label-sigma", from_zero, "standard deviation of a target around its count, items")
    by_mode("--ema-decay", share, "of the exponential moving average of the weights, 0 for none")
    flag(
        "--ensemble-size",
        type=whole_number,
        default=1,
        help="networks, or heads, that train side by side and count together; each takes as long "
        "as one, in training and when it counts (default: %(default)s)",
    )
    flag(
        "--batch-norm",
        choices=("train", "frozen"),
        default="train",
        help="of the backbone, when fine-tuning: learn from each batch, or stay as pretrained "
        "(default: %(default)s)",
    )
    flag(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the convolutions, when fine-tuning; auto: bfloat16 where this machine has "
        "instructions for it, on an older GPU float16, else float32; a run that goes on elsewhere "
        "keeps what it began with (default: %(default)s)",
    )
    flag(
        "--backbone-precision",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="of the backbone that computes the features of head mode; bfloat16 is faster on a CPU "
        "with instructions for it, int8 needs one with VNNI (default: %(default)s)",
    )
    flag(
        "--mirror",
        choices=("no", "yes"),
        default="no",
        help="yes: answer from the photo and its mirror image together, in twice the time "
        "(default: %(default)s)",
    )
    flag(
        "--decision",
        choices=DECISIONS,
        default="argmax",
        help="from the probabilities to a count (default: %(default)s)",
    )
    flag(
        "--validation-fraction",
        type=number_from_zero(included=False, below=1),
        default=0.1,
        help="share of the training products held out while training (default: %(default)s)",
    )
    flag(
        "--eval-every",
        type=whole_number,
        default=1000,
        help="measure on validation every so many steps of an epoch as well as after it "
        "(default: %(default)s)",
    )
    flag(
        "--train-on",
        choices=("train", "all"),
        default="train",
        help="all: the test photos as well, for a last model of settings that were judged before; "
        "nothing is tested (default: %(default)s)",
    )
    flag(
        "--seed",
        type=whole_number_or_zero,
        default=0,
        help="of all randomness (default: %(default)s)",
    )


def _add_machine(group: "argparse._ArgumentGroup") -> None:
    flag = group.add_argument
    flag(
        "--threads",
        type=whole_number,
        default=max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        help="CPU threads; weights are reproducible for one number (default: all, shared with the "
        "other processes of torchrun: %(default)s)",
    )
    flag(
        "--snapshot-seconds",
        type=number_from_zero(included=True),
        default=30,
        help="time between snapshots (default: %(default)s)",
    )
    flag(
        "--dollars-an-hour",
        type=number_from_zero(included=True),
        default=0.0,
        help="what the machine costs, to show what was spent so far (default: not shown)",
    )
    flag(
        "--profile",
        action="store_true",
        help="write OUTPUT/profile.txt and trace.json by torch.profiler, of the first steps",
    )
