"""The command line of a start, on EC2 or on SageMaker: its own flags, -- and training.train's."""

import argparse

from common.command import between, hours
from training.runs.fallback import FALLBACK_MINUTES
from training.settings import ARCHITECTURES, expand_settings, given_settings
from training.settings import parse_arguments as parse_train_arguments

SET_BY_MACHINE = ("data", "weights", "output", "model_dir", "arch", "checkpoint_dir", "run_id")


def parse_start(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Flags of `parser`, which has --arch, and after -- those of training.train.

    They come as `train_arguments`, with `--settings FILE` expanded; as `train_settings`, by name,
    but for the machine's own; and `epochs`, `mode`, `ensemble_size`. What training.train would
    refuse is refused here, by its own parser.
    """
    divider = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_args(arguments[:divider])
    try:
        args.train_arguments = expand_settings(arguments[divider + 1 :])
    except ValueError as error:
        parser.error(str(error))
    set_by_machine = ["--data", "-", "--weights", "-", "--output", "-", "--arch", args.arch]
    usual = parse_train_arguments(set_by_machine)
    asked = parse_train_arguments([*set_by_machine, *args.train_arguments])
    for name in SET_BY_MACHINE:
        if getattr(asked, name) != getattr(usual, name):
            parser.error(f"--{name.replace('_', '-')} is set by the machine, not after --")
    given = given_settings([*set_by_machine, *args.train_arguments])
    args.train_settings = {k: v for k, v in given.items() if k not in SET_BY_MACHINE}
    args.epochs, args.mode, args.ensemble_size = asked.epochs, asked.mode, asked.ensemble_size
    return args


def add_what(parser: argparse.ArgumentParser) -> None:
    """--dataset and --arch: what is trained, and on what."""
    flag = parser.add_argument
    flag("--dataset", default="bins", help="name of an uploaded data set (default: %(default)s)")
    flag(
        "--arch",
        choices=sorted(ARCHITECTURES),
        default="resnet50",
        help="pretrained backbone (default: %(default)s)",
    )


def add_fallback_flag(parser: argparse.ArgumentParser) -> None:
    """--fallback-minutes, of launches on EC2."""
    parser.add_argument(
        "--fallback-minutes",
        type=between(5, 7 * 24 * 60),  # a machine boots in two or three
        default=FALLBACK_MINUTES,
        help="with purchase=spot_first: without a machine at work for so long, one is started "
        "on demand (default: %(default)s)",
    )


def add_start_flags(parser: argparse.ArgumentParser, limit: str) -> None:
    """--max-hours, for which `limit` is the help, --yes and --follow."""
    flag = parser.add_argument
    flag(
        "--max-hours",
        type=hours,
        default=3,
        help=f"{limit} (default: %(default)s)",
    )
    flag("--yes", action="store_true", help="start without asking")
    flag("--follow", action="store_true", help="show the progress until the run ends")
