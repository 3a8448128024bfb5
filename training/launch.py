"""Start a training run on a spot machine of the deployed TrainStack, or look after one.

    python -m training.launch --dataset bins --arch resnet50 --follow
    python -m training.launch --dataset bins -- --epochs 60     (flags of training.train after --)

Starting checks what a run needs, states time and cost, asks, books the end of all machines at the
deadline, and only then asks for one. The machine does the rest and ends itself.

    python -m training.launch status [RUN]          where it stands, and what it has cost so far
    python -m training.launch follow [RUN]          its progress, until it ends
    python -m training.launch logs [RUN] [--follow] what its machines printed
    python -m training.launch stop [RUN]            snapshot, then end it; no machine is left
    python -m training.launch resume RUN            go on with one that was stopped or has failed
    python -m training.launch list                  the newest runs, and whose model is the newest

RUN is the active run, or else the newest, unless it is named.
"""

import argparse
import sys
from datetime import UTC, datetime

from botocore.exceptions import BotoCoreError, ClientError

from common.command import in_one_line, interruptible
from common.outputs import NotDeployedError
from common.run_record import StatusChangedError
from costs.prices import PriceError
from training.launcher.arguments import (
    add_fallback_flag,
    add_start_flags,
    add_what,
    parse_start,
)
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import follow
from training.launcher.list_runs import list_runs
from training.launcher.logs import print_logs
from training.launcher.start import resume, start
from training.launcher.status import choose_run, format_run, look
from training.launcher.stop import stop
from training.runs.active_run import RunActiveError

PROGRAM = "python -m training.launch"
LIMIT = "no machine runs after this, whatever happens"
DENIED = (
    "; if the budget is spent (over_budget=deny), TrainStack's output LiftDeny is the command "
    "that lifts it"
)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The flags of a start, or of a command if the first word is one; `command` says which."""
    if arguments and not arguments[0].startswith("-"):
        return _commands().parse_args(arguments)
    return parse_start(_start_flags(), arguments)


def _start_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [flags] [-- flags of training.train]\n       {PROGRAM} COMMAND [RUN]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command="start")
    add_what(parser)
    add_start_flags(parser, LIMIT)
    add_fallback_flag(parser)
    return parser


def _commands() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, explanation in (
        ("status", "where a run stands, and what it has cost so far"),
        ("follow", "the progress of a run, until it ends"),
        ("logs", "what the machines of a run printed"),
        ("stop", "end the active run after a snapshot; no machine is left"),
    ):
        command = commands.add_parser(name, help=explanation, description=explanation)
        default = "the active run" if name == "stop" else "the active run, or else the newest"
        command.add_argument("run", nargs="?", metavar="RUN", help=f"default: {default}")
        if name == "logs":
            command.add_argument("--follow", action="store_true", help="until the run ends")
    explanation = "go on with a run that was stopped or has failed: same code, new deadline"
    command = commands.add_parser("resume", help=explanation, description=explanation)
    command.add_argument("run", metavar="RUN", help="its id, see list")
    add_start_flags(command, LIMIT)
    add_fallback_flag(command)
    explanation = "the newest runs, and whose model is the newest"
    commands.add_parser("list", help=explanation, description=explanation)
    return parser


def run_command(args: argparse.Namespace) -> bool:
    """Do what was asked; returns whether all is well, which `follow` says of its run.

    Raises LaunchError, RunActiveError, NotDeployedError, PriceError, or an error of botocore.
    """
    deployment = Deployment.connect()
    match args.command:
        case "start" | "resume":
            run_id = (start if args.command == "start" else resume)(deployment, args)
            if args.follow:
                return follow(deployment, run_id)
            print(f"see how it goes with `{PROGRAM} follow`")
        case "status":
            run = look(deployment, choose_run(deployment, args.run))
            print(format_run(run, now=datetime.now(UTC)))
        case "follow":
            return follow(deployment, choose_run(deployment, args.run))
        case "logs":
            print_logs(deployment, choose_run(deployment, args.run), follow=args.follow)
        case "stop":
            stop(deployment, args.run)
        case "list":
            print(list_runs(deployment))
    return True


@interruptible()
def main() -> None:
    args = parse_arguments(sys.argv[1:])
    try:
        succeeded = run_command(args)
    except (LaunchError, NotDeployedError, PriceError, RunActiveError, StatusChangedError) as error:
        sys.exit(f"error: {error}")
    except (BotoCoreError, ClientError) as error:
        hint = DENIED if "explicit deny" in str(error) else ""
        sys.exit(f"error: AWS: {in_one_line(error)}{hint}")
    except KeyboardInterrupt:  # not "stopped": the run goes on
        sys.exit(f"\nerror: {args.command} was broken off")
    if not succeeded:
        sys.exit(1)


if __name__ == "__main__":
    main()
