"""What this project costs: before a run, after it, and while nothing happens.

python -m costs estimate --photos 8000 --arch resnet50    a run to come
python -m costs compare --chart costs.png                 the newest run, here and elsewhere
python -m costs actual RUN                                what AWS asked for it
python -m costs accuracy                                  estimates against that, run by run
python -m costs idle                                      a month without a run or a call
python -m costs refresh                                   today's prices, for all of these
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from common.command import in_one_line, interruptible
from common.outputs import NotDeployedError
from costs.endpoint import CALL_SECONDS
from costs.estimate import DEFAULT_VOLUME_GIB, FEATURE_RATE, print_estimate
from costs.prices import PRICES_FILE, load_prices


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line()
    options = parser.parse_args(arguments)
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "estimate": estimate,
        "compare": compare,
        "actual": actual,
        "accuracy": accuracy,
        "idle": idle,
        "refresh": refresh,
        "tags": tags,
    }
    try:
        commands[options.command](options)
    except (ValueError, BotoCoreError, ClientError, NotDeployedError) as error:
        parser.exit(1, f"error: {in_one_line(error)}\n")


# Each imports what it needs: an estimate needs neither the CDK nor the seconds of its import.


def estimate(options: argparse.Namespace) -> None:
    print_estimate(
        options.photos,
        options.arch,
        options.epochs,
        options.instance_type,
        options.volume_gib,
        load_prices(),
        options.mode,
    )


def compare(options: argparse.Namespace) -> None:
    from costs.chart import draw_chart
    from costs.compare import Machine, PastRun, measured_runs, past_run, print_run
    from costs.endpoint import print_endpoint
    from costs.runs import find_run
    from costs.settings import read_settings

    settings, prices, measured = read_settings(), load_prices(), []
    if options.seconds is None:
        record = find_run(options.bucket, options.run_id)
        run, measured = past_run(record, prices), measured_runs(record, prices, options.twin)
    elif options.run_id or options.twin:
        raise ValueError("give --seconds or runs by name, not both")
    else:
        run = PastRun([Machine(options.instance_type, options.seconds)], options.volume_gib)
    print_run(run, prices, measured)
    print()
    memory_mb = options.memory_mb or settings.endpoint_memory_mb
    instance_type = options.endpoint_instance_type or settings.endpoint_instance_type
    print_endpoint(
        call_seconds=options.call_seconds,
        memory_mb=memory_mb,
        instance_type=instance_type,
        prices=prices,
    )
    if options.chart:
        draw_chart(
            options.chart,
            run,
            measured=measured,
            call_seconds=options.call_seconds,
            memory_mb=memory_mb,
            instance_type=instance_type,
            prices=prices,
        )
        print(f"\nchart: {options.chart}")


def actual(options: argparse.Namespace) -> None:
    from costs.actual import print_actual

    print_actual(
        options.bucket,
        options.run_id,
        load_prices(),
        cost_explorer=options.cost_explorer,
    )


def accuracy(options: argparse.Namespace) -> None:
    from costs.accuracy import print_accuracy

    print_accuracy(options.bucket)


def idle(options: argparse.Namespace) -> None:
    from costs.idle import print_idle
    from costs.settings import context

    print_idle(context(options.context), options.photos, options.runs, load_prices())


def refresh(options: argparse.Namespace) -> None:
    from costs.refresh import print_refresh

    print_refresh(PRICES_FILE, options.region)


def tags(_: argparse.Namespace) -> None:
    from costs.activate_tags import activate_tags

    print(activate_tags())


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    flag = add("estimate", "Time and cost of a training run to come.").add_argument
    flag("--photos", type=positive, required=True, help="photos, train and test")
    flag("--arch", choices=sorted(FEATURE_RATE), default="resnet50", help="default: %(default)s")
    flag(
        "--mode",
        choices=("head", "finetune"),
        default="head",
        help="train a new head, or every layer (default: %(default)s)",
    )
    flag("--epochs", type=positive, default=20, help="default: %(default)s")
    _add_machine(flag)

    flag = add(
        "compare",
        "One run on spot, on demand and on SageMaker, by the record of a run there with the same "
        "work where there is one, beside the original project; then the endpoint, serverless and "
        "real-time, by calls a day.",
    ).add_argument
    flag("--run-id", help="a finished run (default: the newest model's run)")
    flag(
        "--with",
        dest="twin",
        metavar="RUN",
        help="a run at the other place (default: the newest there with the same work)",
    )
    _add_bucket(flag)
    flag("--seconds", type=positive, help="instead of a run: how long it took")
    _add_machine(flag)
    flag(
        "--call-seconds",
        type=positive_number,
        default=CALL_SECONDS,
        help="computing for one photo (default: %(default)s)",
    )
    flag("--memory-mb", type=positive, help="of the serverless endpoint (default: its setting)")
    flag("--endpoint-instance-type", help="of the real-time endpoint (default: its setting)")
    flag("--chart", type=Path, metavar="FILE", help="draw both as well, for example costs.png")

    flag = add(
        "actual",
        "What a run did cost, by the spot prices of its hours, beside its estimate; kept in the "
        "run's cost.json.",
    ).add_argument
    flag("run_id", nargs="?", help="a run that is over (default: the newest model's run)")
    _add_bucket(flag)
    flag(
        "--cost-explorer",
        action="store_true",
        help="also what the bill says of its days; AWS takes $0.01 for asking",
    )

    flag = add(
        "accuracy",
        "Estimate against actual, of each run that succeeded, and the median error.",
    ).add_argument
    _add_bucket(flag)

    flag = add("idle", "What a month costs in which nothing trains and nobody calls.").add_argument
    flag("--photos", type=positive, default=10_000, help="in the data set (default: %(default)s)")
    flag("--runs", type=positive, default=10, help="models that are kept (default: %(default)s)")
    flag(
        "-c",
        dest="context",
        action="append",
        default=[],
        metavar="name=value",
        help="a setting, as for cdk deploy; may be repeated",
    )

    flag = add(
        "refresh", "Ask AWS for today's prices and write them to costs/prices.json."
    ).add_argument
    flag("--region", help="whose prices (default: the file's)")

    add("tags", "Activate the cost allocation tags, from a day after the first deploy.")
    return parser


def _add_bucket(flag: Callable[..., argparse.Action]) -> None:
    flag("--bucket", help="of the run (default: DataStack's output BucketName)")


def _add_machine(flag: Callable[..., argparse.Action]) -> None:
    flag("--instance-type", default="c7i.large", help="EC2 machine (default: %(default)s)")
    flag(
        "--volume-gib",
        type=positive,
        default=DEFAULT_VOLUME_GIB,
        help="size of its disk (default: %(default)s)",
    )


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positive_number(text: str) -> float:
    """A finite number above zero, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


if __name__ == "__main__":
    main()
