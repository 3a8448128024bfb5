"""Start a training run on a spot machine of the deployed TrainStack, or manage a run.

A start checks what the run needs, prints the expected time and cost, and asks. Then it books the
end of all machines at the deadline, and only then requests a machine. The machine trains and ends
itself.

    python -m training.launch --dataset bins --arch resnet50 --follow
    python -m training.launch --dataset bins -- --epochs 60
"""

import sys
from datetime import UTC, datetime
from typing import Annotated

from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Parameter
from cyclopts.validators import Number

from common.command import in_one_line, interruptible
from common.flags import Switch, command_line
from common.outputs import NotDeployedError
from common.run_record import StatusChangedError
from costs.prices import PriceError
from training.launcher.arguments import LaunchOptions, ModelOptions, TrainFlags, parse_training
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import follow
from training.launcher.list_runs import list_runs
from training.launcher.logs import print_logs
from training.launcher.start import resume, start
from training.launcher.status import choose_run, format_run, load_run
from training.launcher.stop import stop
from training.runs.active_run import RunActiveError
from training.runs.fallback import FALLBACK_MINUTES

PROGRAM = "python -m training.launch"
DENIED = (
    "; if the budget is spent (over_budget=deny), run the command in TrainStack's output LiftDeny"
)
FallbackMinutes = Annotated[
    float,
    Parameter(
        validator=Number(gte=5, lte=7 * 24 * 60),  # a machine boots in two or three minutes
        help="With purchase=spot_first, minutes without a working machine until an on-demand "
        "machine is started.",
    ),
]
Run = Annotated[
    str | None, Parameter(help="Id of a run [default: the active run, or else the newest].")
]
app = command_line(PROGRAM, __doc__)


@app.default
def _start(
    *train_flags: TrainFlags,
    model: ModelOptions = ModelOptions(),
    options: LaunchOptions = LaunchOptions(),
    fallback_minutes: FallbackMinutes = FALLBACK_MINUTES,
) -> bool:
    work, _ = parse_training(train_flags, model, PROGRAM)
    deployment = Deployment.connect()
    return _started(deployment, start(deployment, work, options, fallback_minutes), options)


@app.command(name="resume")
def _resume(
    run: Annotated[str, Parameter(help="Id of a run, as in `list`.")],
    /,
    *,
    options: LaunchOptions = LaunchOptions(),
    fallback_minutes: FallbackMinutes = FALLBACK_MINUTES,
) -> bool:
    """Resume a run that was stopped or has failed, with the same code and a new deadline."""
    deployment = Deployment.connect()
    return _started(deployment, resume(deployment, run, options, fallback_minutes), options)


def _started(deployment: Deployment, run_id: str, options: LaunchOptions) -> bool:
    if options.follow:
        return follow(deployment, run_id)
    print(f"follow it with `{PROGRAM} follow {run_id}`")
    return True


@app.command(name="status")
def _status(run: Run = None, /) -> bool:
    """Show the status of a run, and its cost so far."""
    deployment = Deployment.connect()
    print(format_run(load_run(deployment, choose_run(deployment, run)), now=datetime.now(UTC)))
    return True


@app.command(name="follow")
def _follow(run: Run = None, /) -> bool:
    """Show the progress of a run until it ends."""
    deployment = Deployment.connect()
    return follow(deployment, choose_run(deployment, run))


@app.command(name="logs")
def _logs(run: Run = None, /, *, follow: Switch = False) -> bool:
    """Show the logs of a run's machines.

    Parameters
    ----------
    follow
        Continue until the run ends.
    """
    deployment = Deployment.connect()
    print_logs(deployment, choose_run(deployment, run), follow=follow)
    return True


@app.command(name="stop")
def _stop(
    run: Annotated[
        str | None, Parameter(help="Id of the run, which must be active [default: the active run].")
    ] = None,
    /,
) -> bool:
    """Stop the active run after a checkpoint, and end its machine."""
    stop(Deployment.connect(), run)
    return True


@app.command(name="list")
def _list() -> bool:
    """Show the newest runs, and which one's model the endpoint serves next."""
    print(list_runs(Deployment.connect()))
    return True


@interruptible()
def main() -> None:
    try:
        succeeded = app(sys.argv[1:])
    except (LaunchError, NotDeployedError, PriceError, RunActiveError, StatusChangedError) as error:
        sys.exit(f"error: {error}")
    except (BotoCoreError, ClientError) as error:
        hint = DENIED if "explicit deny" in str(error) else ""
        sys.exit(f"error: AWS: {in_one_line(error)}{hint}")
    except KeyboardInterrupt:  # instead of `interruptible`'s "stopped": a run may continue
        sys.exit("\nerror: interrupted")
    if succeeded is False:
        sys.exit(1)


if __name__ == "__main__":
    main()
