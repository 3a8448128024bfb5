"""What training costs: `estimate` before a run, `compare` after one.

python -m costs estimate --photos 8000 --arch resnet50
python -m costs compare --run-id 2026-11-23-a1b2 --bucket my-bucket
python -m costs compare --seconds 900 --instance-type c7i.large
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from costs.estimate import (
    DEFAULT_VOLUME_GIB,
    FEATURE_RATE,
    compare_run,
    estimate_training,
    run_cost,
    total,
)
from costs.prices import Prices, load_prices


@dataclass(frozen=True)
class PastRun:
    """The part of a run's cost record that a comparison needs."""

    seconds: float
    instance_type: str
    volume_gib: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line()
    options = parser.parse_args(arguments)
    try:
        prices = load_prices()
        if options.command == "estimate":
            print_estimate(options, prices)
        else:
            print_comparison(past_run(options), prices)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    estimate = commands.add_parser("estimate", help="time and cost of a training run to come")
    estimate.add_argument("--photos", type=positive, required=True, help="photos, train and test")
    estimate.add_argument(
        "--arch", choices=sorted(FEATURE_RATE), default="resnet50", help="default: %(default)s"
    )
    estimate.add_argument(
        "--epochs", type=positive, default=20, help="over the features (default: %(default)s)"
    )
    compare = commands.add_parser(
        "compare", help="one run on spot, on demand and on SageMaker, beside the original project"
    )
    compare.add_argument(
        "--run-id", help="a finished run, by its cost.json (default: the newest model's run)"
    )
    compare.add_argument("--bucket", help="of the run (default: DataStack's output BucketName)")
    compare.add_argument("--seconds", type=positive, help="instead of a run: how long it took")
    for command in (estimate, compare):
        command.add_argument(
            "--instance-type", default="c7i.large", help="EC2 machine (default: %(default)s)"
        )
        command.add_argument(
            "--volume-gib",
            type=positive,
            default=DEFAULT_VOLUME_GIB,
            help="size of its disk (default: %(default)s)",
        )
    return parser


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def past_run(options: argparse.Namespace) -> PastRun:
    """The run that the options name, from its record in the bucket or from --seconds."""
    if options.seconds is not None:
        if options.run_id:
            raise ValueError("give --run-id or --seconds, not both")
        return PastRun(options.seconds, options.instance_type, options.volume_gib)
    # Not at the top: an estimate needs neither boto3 nor the time its import takes.
    from botocore.exceptions import BotoCoreError, ClientError

    from infra.outputs import NotDeployedError, stack_output

    try:
        bucket = options.bucket or stack_output("DataStack", "BucketName")
        return read_run(bucket, options.run_id or newest_run())
    except (BotoCoreError, ClientError, NotDeployedError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def newest_run() -> str:
    """The run of the newest model, by TrainStack's parameter; ValueError before the first."""
    import boto3

    from infra.outputs import stack_output

    name = stack_output("TrainStack", "ModelParameterName")
    uri = boto3.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    if not uri.startswith("s3://"):
        raise ValueError("no run has succeeded yet: run `python -m training.launch`")
    return uri.split("/")[-2]


def read_run(bucket: str, run_id: str) -> PastRun:
    """The cost record of a run. Raises ValueError when there is none that can be read."""
    import boto3
    from botocore.exceptions import ClientError

    from training.run_record import RunRecord

    uri = f"s3://{bucket}/runs/{run_id}/cost.json"
    try:
        cost = RunRecord(boto3.client("s3"), bucket, run_id).read("cost.json")
        return PastRun(float(cost["seconds"]), str(cost["instance_type"]), int(cost["volume_gib"]))
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            raise ValueError(
                f"{uri} does not exist: is the run's name right, and has the run ended?"
            ) from error
        raise ValueError(f"{uri} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{uri} is not a cost record: {error!r}") from error


def print_estimate(options: argparse.Namespace, prices: Prices) -> None:
    estimate = estimate_training(
        options.photos,
        options.arch,
        options.epochs,
        options.instance_type,
        prices,
        volume_gib=options.volume_gib,
    )
    lines = run_cost(estimate.seconds, options.instance_type, "spot", options.volume_gib, prices)
    rows = [
        [
            line.name,
            f"{line.quantity:.4f}",
            line.unit,
            f"{line.unit_price:.5f}",
            money(line.dollars),
        ]
        for line in lines
    ]
    rows.append(["total", "", "", "", money(total(lines))])
    print(table(["item", "quantity", "unit", "$ each", "$"], rows))
    print(f"\nabout {estimate.seconds / 60:.0f} minutes, ${estimate.dollars:.4f}")
    print(f"basis: {estimate.basis}")
    for source in dict.fromkeys(line.source for line in lines):
        print(f"source: {source}")


def print_comparison(run: PastRun, prices: Prices) -> None:
    rows = [
        [
            row.where,
            row.instance_type,
            "" if row.hours is None else f"{row.hours:.2f}",
            money(row.dollars),
            row.note,
        ]
        for row in compare_run(run.seconds, run.instance_type, run.volume_gib, prices)
    ]
    print(table(["where", "machine", "hours", "$", "note"], rows))
    print(
        f"\n{run.seconds / 60:.1f} minutes on {run.instance_type}; prices of {prices.region}, "
        f"{prices.date}; the source of each is in costs/prices.json"
    )


def money(dollars: float) -> str:
    """Dollars to four places, as a run costs fractions of a cent."""
    return f"{dollars:.4f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns padded to their widest cell; columns of numbers are set to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [is_numeric(column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [header, *rows]
    )


def is_numeric(cells: Sequence[str]) -> bool:
    return all(cell.replace(".", "", 1).isdigit() for cell in cells if cell)


if __name__ == "__main__":
    main()
