"""Show what this project costs: before a run, after it, and while nothing happens.

For example:

    python -m costs estimate --photos 8000 --arch resnet50
    python -m costs compare --chart costs.png
    python -m costs actual
    python -m costs accuracy
    python -m costs idle
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Parameter

from common import flags
from common.choices import EPOCHS, Arch, Mode
from common.command import in_one_line, interruptible
from common.flags import Positive, PositiveInt, Switch, command_line
from common.outputs import NotDeployedError
from costs.endpoint import CALL_SECONDS, EndpointCosts
from costs.estimate import DEFAULT_VOLUME_GIB, estimate_training, print_estimate, run_cost
from costs.prices import PRICES_FILE, load_prices

Bucket = Annotated[
    str | None, Parameter(help="Bucket of the run [default: DataStack's output BucketName].")
]
app = command_line("python -m costs", __doc__)


@interruptible()
def main(arguments: Sequence[str] | None = None) -> None:
    try:
        flags.run(app, arguments)
    except (ValueError, BotoCoreError, ClientError, NotDeployedError) as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        sys.exit(1)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MachineFlags:
    """The machine that trains."""

    instance_type: str = "c7i.large"
    """Type of the EC2 machine."""
    volume_gib: PositiveInt = DEFAULT_VOLUME_GIB
    """Size of its disk in GiB."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EndpointFlags:
    """What the endpoint's costs are computed for."""

    call_seconds: Positive = CALL_SECONDS
    """Seconds of computing for one photo."""
    memory_mb: PositiveInt | None = None
    """Memory of the serverless endpoint in MB [default: the setting endpoint_memory_mb]."""
    endpoint_instance_type: str | None = None
    """Machine of the real-time endpoint [default: the setting endpoint_instance_type]."""


# Each command imports what it needs: an estimate needs neither the CDK nor the seconds of its
# import.


@app.command
def estimate(
    *,
    photos: PositiveInt,
    arch: Arch = "resnet50",
    mode: Mode = "head",
    epochs: PositiveInt | None = None,
    ensemble_size: PositiveInt = 1,
    machine: MachineFlags = MachineFlags(),
) -> None:
    """Estimate the time and cost of a training run on a spot machine.

    Args:
        photos: Number of photos in the data set, training and test.
        arch: Pretrained backbone.
        mode: Train a new head only, or fine-tune every layer.
        epochs: Passes over the photos [default: that of training.train in this mode].
        ensemble_size: Number of networks, or heads, that train side by side.
    """
    prices, volume_gib = load_prices(), machine.volume_gib
    expected = estimate_training(
        photos,
        arch,
        epochs or EPOCHS[mode],
        machine.instance_type,
        prices,
        mode=mode,
        ensemble_size=ensemble_size,
        volume_gib=volume_gib,
    )
    print_estimate(
        expected, run_cost(expected.seconds, machine.instance_type, "spot", volume_gib, prices)
    )


@app.command
def compare(
    *,
    run_id: str | None = None,
    twin: Annotated[str | None, Parameter(name="--with")] = None,
    bucket: Bucket = None,
    seconds: PositiveInt | None = None,
    machine: MachineFlags = MachineFlags(),
    endpoint: EndpointFlags = EndpointFlags(),
    chart: Path | None = None,
) -> None:
    """Compare the cost of a run on EC2 and on SageMaker, spot and on demand.

    If a run at the other place did the same work, its bill is shown; otherwise the cost there is
    estimated. The original project's bills are listed below. A second table compares a serverless
    with a real-time endpoint, by calls a day.

    Args:
        run_id: A finished run [default: the newest model's run].
        twin: The run at the other place to compare with [default: the newest one there with the
            same work].
        seconds: Compare a run of so many seconds on --instance-type, instead of a finished run.
        chart: Also draw both comparisons into this file, for example costs.png.
    """
    from costs.chart import draw_chart
    from costs.compare import Machine, PastRun, measured_runs, past_run, print_run
    from costs.endpoint import print_endpoint
    from costs.runs import find_run
    from costs.settings import read_settings

    settings, prices, measured = read_settings(), load_prices(), []
    if seconds is None:
        record = find_run(bucket, run_id)
        run, measured = past_run(record, prices), measured_runs(record, prices, twin)
    elif run_id or twin:
        raise ValueError("give either --seconds, or runs with --run-id and --with")
    else:
        run = PastRun([Machine(machine.instance_type, seconds)], machine.volume_gib)
    print_run(run, prices, measured)
    print()
    costs = EndpointCosts(
        call_seconds=endpoint.call_seconds,
        memory_mb=endpoint.memory_mb or settings.endpoint_memory_mb,
        instance_type=endpoint.endpoint_instance_type or settings.endpoint_instance_type,
        prices=prices,
    )
    print_endpoint(costs)
    if chart:
        draw_chart(chart, run, measured, costs)
        print(f"\nchart: {chart}")


@app.command
def actual(
    run_id: str | None = None, /, *, bucket: Bucket = None, cost_explorer: Switch = False
) -> None:
    """Show what a run cost, at the spot prices of its hours, beside its estimate.

    The result is stored in the run's cost.json.

    Args:
        run_id: A finished run [default: the newest model's run].
        cost_explorer: Also show what AWS billed for the days of the run; AWS charges $0.01 for
            the request.
    """
    from costs.actual import print_actual

    print_actual(bucket, run_id, load_prices(), cost_explorer=cost_explorer)


@app.command
def accuracy(*, bucket: Bucket = None) -> None:
    """List estimated and actual cost of each run that succeeded, and the median error."""
    from costs.accuracy import print_accuracy

    print_accuracy(bucket)


@app.command
def idle(
    *,
    photos: PositiveInt = 10_000,
    runs: PositiveInt = 10,
    context: Annotated[tuple[str, ...], Parameter(name="-c", show_default=False)] = (),
) -> None:
    """Show what a month costs in which nothing trains and nobody calls the endpoint.

    Args:
        photos: Number of photos in the data set.
        runs: Number of runs whose models are kept.
        context: A setting as NAME=VALUE, as for `cdk deploy`; may be repeated.
    """
    from costs.idle import print_idle
    from costs.settings import context as settings

    print_idle(settings(context), photos, runs, load_prices())


@app.command
def refresh(*, region: str | None = None) -> None:
    """Ask AWS for today's prices and write them to costs/prices.json.

    Args:
        region: Region whose prices to get [default: that of the file].
    """
    from costs.refresh import print_refresh

    print_refresh(PRICES_FILE, region)


@app.command
def tags() -> None:
    """Activate the cost allocation tags; possible about a day after the first deploy."""
    from costs.activate_tags import activate_tags

    print(activate_tags())


if __name__ == "__main__":
    main()
