"""The settings of a training run: the fields of these classes are its flags.

Does not import PyTorch, so that launcher and machine can read flags quickly.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from common.choices import EPOCHS, Arch, Mode
from common.flags import (
    Fraction,
    FractionOrZero,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Switch,
)
from serving.container.cores import available_cores
from serving.container.decision import Decision

INTERRUPTED = 75  # exit code after a stop, EX_TEMPFAIL: the same command resumes
RESUMABLE = "stopped: run the same command again to resume"
CHECKPOINTS_KEPT = 2  # the older one replaces the newest if that is damaged
CHUNK_PHOTOS = 256  # photos per file of features, which take a few seconds

RECIPE = "Recipe, which determines the weights"  # group of flags
BackbonePrecision = Literal["float32", "bfloat16"]
TrainingPrecision = Literal["auto", "float32", "bfloat16", "float16"]
DEFAULT_THREADS = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def seconds(name: str, usual: float) -> float:
    """Return a time limit of the machine: `usual`, or SPOT_<name>_SECONDS, set by a rehearsal."""
    return float(os.environ.get(f"SPOT_{name}_SECONDS", usual))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The name of a backbone in timm, and the normalisation of its pixels (0–255) by channel."""

    timm_name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


ARCHITECTURES: dict[str, Architecture] = {
    # Mean and standard deviation of ImageNet, times 255.
    "resnet50": Architecture(
        timm_name="resnet50",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
    # (x − 127) / 128, as the published weights were trained (github.com/tensorflow/tpu).
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


# Defaults of flags, by mode. Those of head were chosen by cross-validation on the training photos,
# those of finetune on the validation photos: see benchmarks/accuracy/README.md.
RECIPES: dict[str, dict[str, int | float | str]] = {
    "head": {
        "epochs": EPOCHS["head"],
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
        "epochs": EPOCHS["finetune"],
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


def _by_mode(name: str, text: str) -> Parameter:
    usual = ", ".join(f"{mode} {recipe[name]}" for mode, recipe in RECIPES.items())
    return Parameter(required=False, help=f"{text} [default: {usual}]")


@Parameter(name="*", group=Group("Inputs and outputs", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class Places:
    """Input and output paths, and what is known about the run when it starts."""

    data: Path
    """Folder of the packed data set (`data_prep pack`)."""
    weights: Path
    """Weights of the pretrained backbone (`data_prep weights`), or weights.pth of an earlier run,
    whose heads are loaded as well if their architecture is the same."""
    output: Path
    """Folder for metrics, weights and the report."""
    model_dir: Path | None = None
    """Folder for the model to serve [default: OUTPUT/model]."""
    checkpoint_dir: Path | None = None
    """Folder for features and checkpoints [default: OUTPUT/checkpoints]."""
    run_id: str = "local"
    """Id of the run, stored in the model."""
    dollars_an_hour: NonNegative = 0.0
    """Price of the machine, to show the cost so far; 0 shows no cost."""

    @property
    def model(self) -> Path:
        return self.model_dir or self.output / "model"

    @property
    def checkpoints(self) -> Path:
        return self.checkpoint_dir or self.output / "checkpoints"


@Parameter(name="*", group=Group("Evaluation and export", sort_key=4))
@dataclass(frozen=True, kw_only=True)
class Extras:
    """Options that do not affect the weights."""

    skip_test: Switch = False
    """Do not evaluate on the test photos, to choose settings by validation."""
    int8: Literal["auto", "no"] = "auto"
    """auto: also export an int8 model, which is served if it is nearly as accurate on validation;
    this needs a CPU with VNNI."""
    profile: Switch = False
    """Profile the first steps with torch.profiler: writes profile.txt and trace.json to OUTPUT."""


@Parameter(name="*", group=Group(RECIPE, sort_key=2))
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the weights depend on besides data and machine; stored in every checkpoint."""

    mode: Mode = "head"
    """head: run the backbone once, and train a new head on its features, in minutes. finetune:
    train every layer."""
    arch: Arch = "resnet50"
    """Architecture of the backbone."""
    size: NonNegativeInt = 0
    """Height and width of the input, in pixels; 0 uses the size of the data set."""
    epochs: Annotated[PositiveInt, _by_mode("epochs", "Passes over the training photos.")]
    batch_size: Annotated[PositiveInt, _by_mode("batch_size", "Photos per step and process.")]
    learning_rate: Annotated[Positive, _by_mode("learning_rate", "Maximum learning rate.")]
    warmup: Annotated[
        FractionOrZero, _by_mode("warmup", "Share of the steps in which the learning rate rises.")
    ]
    weight_decay: Annotated[NonNegative, _by_mode("weight_decay", "Weight decay of AdamW.")]
    hidden: Annotated[
        NonNegativeInt, _by_mode("hidden", "Units of the hidden layer of the head, 0 for none.")
    ]
    dropout: Annotated[FractionOrZero, _by_mode("dropout", "Dropout in the head.")]
    label_sigma: Annotated[
        NonNegative,
        _by_mode(
            "label_sigma", "Standard deviation of the soft targets around the true count, in items."
        ),
    ]
    ema_decay: Annotated[
        FractionOrZero,
        _by_mode(
            "ema_decay", "Decay of the exponential moving average of the weights, 0 for no average."
        ),
    ]
    ensemble_size: PositiveInt = 1
    """Number of networks, or heads, whose predictions are averaged; training and inference take
    that many times as long."""
    batch_norm: Literal["train", "frozen"] = "train"
    """BatchNorm of the backbone with --mode finetune: use the statistics of each batch, or the
    pretrained ones."""
    precision: TrainingPrecision = "auto"
    """Precision of the convolutions with --mode finetune. auto: bfloat16 if this machine has
    instructions for it, float16 on an older GPU, else float32; a resumed run keeps its
    precision."""
    backbone_precision: BackbonePrecision = "float32"
    """Precision of the backbone with --mode head. bfloat16 is faster on a CPU with instructions for
    it."""
    mirror: Literal["no", "yes"] = "no"
    """yes: average the predictions of a photo and its mirror image, which takes twice as long."""
    decision: Decision = "argmax"
    """How the probabilities become a count. argmax: the most probable; mean: the one nearest to the
    mean; median: the one with the least absolute error."""
    validation_fraction: Fraction = 0.1
    """Share of the training products that is held out for validation."""
    eval_every: PositiveInt = 1000
    """Steps of an epoch between evaluations on validation, in addition to those after epochs."""
    train_on: Literal["train", "all"] = "train"
    """all: also train on the test photos, for a final model with settings that were tested before;
    this run is not tested."""
    seed: NonNegativeInt = 0
    """Random seed."""


@Parameter(name="*", group=Group("Machine", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class Machine:
    """Resources of the machine, and how often it saves checkpoints."""

    threads: Annotated[PositiveInt, Parameter(show_default=False)] = DEFAULT_THREADS
    """CPU threads, on which the exact weights depend [default: all, divided among the processes of
    torchrun]."""
    checkpoint_seconds: NonNegative = 30.0
    """Seconds between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The flags of training.train that a launch can pass on, after --."""

    settings: Settings
    extras: Extras = Extras()
    machine: Machine = Machine()
    settings_file: Annotated[Path | None, Parameter("--settings", group=RECIPE)] = None
    """JSON file with values for flags that are not given, such as best.json of a search."""


@dataclass(frozen=True, kw_only=True)
class Options(Choices):
    """All flags of training.train."""

    places: Places
