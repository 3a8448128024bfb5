"""The flags that start a run on EC2 or on SageMaker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from common.choices import Arch
from common.flags import Hours, Switch
from common.run_record import Work
from training.flags import as_flags, parse_given
from training.launcher.deployment import LaunchError
from training.settings import Choices

TrainFlags = Annotated[
    str, Parameter(help="Flags of training.train, after --. The machine sets its paths.")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a run trains, and on which data set."""

    dataset: str = "bins"
    """Name of an uploaded data set."""
    arch: Arch = "resnet50"
    """Pretrained backbone."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The limit of a run, and how the command starts it."""

    max_hours: Hours = 3.0
    """Time limit in hours, after which no machine runs, whatever happens. SageMaker does not count
    the wait for machines."""
    yes: Switch = False
    """Start without asking."""
    follow: Switch = False
    """Show the progress until the run ends."""


def parse_training(
    words: Sequence[str], model: ModelOptions, name: str
) -> tuple[Work, dict[str, Any]]:
    """Parse the flags of training.train that follow `--`; a file of --settings is read now.

    Returns the work of a run, and the given values by name, without the defaults. `name` is the
    command in the help. Flags that a machine sets itself, such as --data, are not accepted.
    """
    choices, values = parse_given(Choices, list(words), name=f"{name} --")
    settings, arch = choices.settings, values.pop("arch", model.arch)
    if arch != model.arch:  # from best.json it is usually the same
        raise LaunchError(
            f"--arch {arch} after -- differs from {model.arch}: give --arch before --"
        )
    work = Work(
        dataset=model.dataset,
        arch=model.arch,
        train_arguments=as_flags(values),
        mode=settings.mode,
        ensemble_size=settings.ensemble_size,
        epochs=settings.epochs,
    )
    return work, values
