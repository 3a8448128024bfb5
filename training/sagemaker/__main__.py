"""Train on SageMaker: the same training.train, on one machine or several, or a search.

    python -m training.sagemaker train --dataset bins --arch resnet50 --follow
    python -m training.sagemaker train --instances 2 -- --mode finetune   (training.train's flags)
    python -m training.sagemaker train --dry-run         what would be asked of SageMaker, no more
    python -m training.sagemaker search --trials 20      SageMaker's search; its end is best.json

Managed spot machines by default, with checkpoints: a job that is interrupted goes on where it
was. What it leaves comes into the run's record once it is followed to its end, as a spot
machine's does:

    python -m training.sagemaker follow [RUN]            its progress, until it ends
    python -m training.sagemaker stop [RUN]              end it
    python -m training.sagemaker resume RUN              go on with one that was stopped or failed

RUN, a run or a search, is the newest run on SageMaker unless it is named. SageMaker Debugger is
closed to new customers: the losses are in CloudWatch by metric definitions and in metrics.jsonl,
and `-- --profile` leaves a profile by torch.profiler in the job's output.
"""

import argparse
import json
import sys
import tarfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from common.command import hours, in_one_line, interruptible
from common.outputs import NotDeployedError
from common.run_record import Attempt, StatusChangedError
from training.launch import DENIED
from training.launcher.arguments import add_start_flags, add_what, parse_start
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.start import confirm
from training.launcher.status import duration
from training.sagemaker.preflight import make_job_plan
from training.sagemaker.request import Job
from training.sagemaker.run import (
    PROGRAM,
    choose_run,
    new_run_id,
    resumable,
    start_job,
    stop_job,
)
from training.sagemaker.run import dry_request as dry_job
from training.sagemaker.run import follow as follow_run
from training.sagemaker.search import dry_request as dry_search
from training.sagemaker.search import follow as follow_search
from training.sagemaker.search import is_search, new_search_name, start_search, stop_search
from training.search.space import SPACES
from training.settings import whole_number

# Snapshots of all layers go to S3 one by one; the older ones stay there, and come to a new machine.
FINETUNE_SNAPSHOTS = 12  # about, in the longest time that is allowed
SHORTEST_SNAPSHOT_SECONDS = 300
VOLUME_GIB = 30
RUN_LIMIT = "of training, waiting for machines not included; then it is ended by force"
SEARCH_LIMIT = "of the whole search; then it is ended by force"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The flags of a command; of a start, as training.launcher.arguments has them."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    explanation = "one training: a managed spot machine, or several"
    train = commands.add_parser("train", help=explanation, description=explanation)
    explanation = "a search by SageMaker over the settings of training.hpo"
    search = commands.add_parser("search", help=explanation, description=explanation)
    for command in (train, search):
        command.usage = f"{PROGRAM} {command.prog.split()[-1]} [flags] [-- flags of training.train]"
        add_what(command)
        _add_machines(command)
        add_start_flags(command, SEARCH_LIMIT if command is search else RUN_LIMIT)
    _add_search(search)
    for name, explanation in (
        ("follow", "the progress of a run or a search, until it ends"),
        ("stop", "end a run or a search"),
    ):
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.add_argument("run", nargs="?", metavar="RUN", help="default: the newest run")
        if name == "follow":
            _add_output(command)
    explanation = "go on with a run that was stopped or has failed: same code, from its checkpoints"
    resume = commands.add_parser("resume", help=explanation, description=explanation)
    resume.add_argument("run", metavar="RUN", help="its id, see `training.launch list`")
    _add_machines(resume)
    add_start_flags(resume, RUN_LIMIT)
    if arguments[:1] in (["train"], ["search"]):
        chosen = train if arguments[0] == "train" else search
        args = parse_start(chosen, arguments[1:])
        args.command, args.resumes = arguments[0], None
        searched = (
            sorted(args.train_settings.keys() & SPACES[args.mode]) if chosen is search else []
        )
        if searched:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in searched)
            search.error(f"{flags}: searched for by `search`, leave it out after --")
        return args
    args = parser.parse_args(arguments)
    args.given = arguments[1:]
    return args


def _add_machines(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--instance-type", default="ml.m5.large", help="SageMaker's type (default: %(default)s)")
    flag(
        "--instances",
        type=whole_number,
        default=1,
        help="machines that share one training, by torchrun (default: %(default)s)",
    )
    flag(
        "--volume-gib",
        type=whole_number,
        default=VOLUME_GIB,
        help="disk of each (default: %(default)s)",
    )
    flag("--on-demand", action="store_true", help="no managed spot: dearer, and never interrupted")
    flag(
        "--max-wait-hours",
        type=hours,
        metavar="HOURS",
        help="for spot machines, the training included (default: twice --max-hours)",
    )
    flag(
        "--dry-run",
        action="store_true",
        help="check, print the request as JSON, and start nothing",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--trials", type=whole_number, default=20, help="trainings in all (default: %(default)s)")
    flag("--parallel", type=whole_number, default=2, help="at once (default: %(default)s)")
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("search"),
        help="where a search leaves best.json and plots (default: %(default)s)",
    )


def start(deployment: Deployment, args: argparse.Namespace) -> bool:
    """Check, ask, start and, if asked to, follow a run or a search. Raises LaunchError."""
    searches = args.command == "search"
    name = args.resumes or (new_search_name() if searches else new_run_id(args.arch))
    job = _job(args, name)
    trials, parallel = (args.trials, args.parallel) if searches else (1, 1)
    # A dry run's standard output is its request alone.
    with redirect_stdout(sys.stderr if args.dry_run else sys.stdout):
        plan = make_job_plan(
            deployment, job, args.train_arguments, trials=trials, parallel=parallel
        )
        _state(args, job, plan.estimate.seconds, plan.estimate.dollars, plan.estimate.basis)
    if args.dry_run and "image" not in plan.failed:  # without one there is no request
        request = dry_search(deployment, job, args) if searches else dry_job(deployment, job)
        print(json.dumps(request, indent=1))
    if plan.failed:
        raise LaunchError(f"not started, see above: {', '.join(plan.failed)}")
    if args.dry_run:
        return True
    confirm(args.yes)
    (start_search if searches else start_job)(deployment, job, args, plan)
    print(f"{'resumed' if args.resumes else 'started'} {'search' if searches else 'run'} {name}")
    if args.follow:
        return follow(deployment, name, args)
    print(f"take up its result with `{PROGRAM} follow {name}`")
    return True


def resume(deployment: Deployment, args: argparse.Namespace) -> bool:
    """The same as `start`, with what the run was asked for, on machines as its last ones unless
    others are given. Raises LaunchError for a run that cannot go on."""
    request = resumable(deployment, args.run)
    attempts = deployment.record(args.run).status()["attempts"]
    machines = machine_flags(attempts[-1]) if attempts else []
    what = ["--dataset", request["dataset"], "--arch", request["arch"]]
    given = [word for word in args.given if word != args.run]
    again = parse_arguments(["train", *what, *machines, *given, "--", *request["train_arguments"]])
    again.resumes = args.run
    return start(deployment, again)


def machine_flags(attempt: Attempt) -> list[str]:
    """Those that ask for the machines of an earlier job."""
    return [
        f"--instance-type={attempt['instance_type']}",
        f"--instances={attempt.get('machines', 1)}",
        f"--volume-gib={attempt.get('volume_gib', VOLUME_GIB)}",
        *(["--on-demand"] if attempt["purchase"] == "on_demand" else []),
    ]


def _job(args: argparse.Namespace, name: str) -> Job:
    settings: dict[str, Any] = {"arch": args.arch, **args.train_settings}
    max_seconds = round(args.max_hours * 3600)
    if args.mode == "finetune":
        often = max(SHORTEST_SNAPSHOT_SECONDS, max_seconds // FINETUNE_SNAPSHOTS)
        settings.setdefault("snapshot_seconds", often)
    max_wait = 2 * args.max_hours if args.max_wait_hours is None else args.max_wait_hours
    if max_wait < args.max_hours:
        raise LaunchError("--max-wait-hours includes the training: give it at least --max-hours")
    return Job(
        run_id=name,
        arch=args.arch,
        dataset=args.dataset,
        instance_type=args.instance_type,
        instances=args.instances,
        volume_gib=args.volume_gib,
        spot=not args.on_demand,
        max_seconds=max_seconds,
        max_wait_seconds=max_seconds if args.on_demand else round(max_wait * 3600),
        hyperparameters=settings,
    )


def _state(args: argparse.Namespace, job: Job, seconds: float, dollars: float, basis: str) -> None:
    machines = f"{job.instances} × {job.instance_type}"
    saved = ", before what managed spot saves" if job.spot else ""
    after = "" if args.command == "search" else " of training"
    limit = f"ended by force after {duration(args.max_hours * 3600)}{after}"
    kind = "search" if args.command == "search" else "run"
    print(
        f"{kind} {job.run_id}: about {duration(seconds)} and ${dollars:.3f} on {machines}{saved}; "
        f"{limit}"
    )
    print(f"  basis: {basis}")


def follow(deployment: Deployment, run: str | None, args: argparse.Namespace) -> bool:
    """Show a run, or a search, until it ends; returns whether it succeeded."""
    if run and is_search(run):
        return follow_search(deployment, run, args.output)
    return follow_run(deployment, choose_run(deployment, run))


def run_command(args: argparse.Namespace) -> bool:
    """Do what was asked; returns whether all is well. Raises LaunchError and AWS's errors."""
    deployment = Deployment.connect()
    match args.command:
        case "follow":
            return follow(deployment, args.run, args)
        case "stop" if args.run and is_search(args.run):
            stop_search(deployment, args.run)
        case "stop":
            stop_job(deployment, choose_run(deployment, args.run))
        case "resume":
            return resume(deployment, args)
        case _:
            return start(deployment, args)
    return True


@interruptible()
def main() -> None:
    args = parse_arguments(sys.argv[1:])
    try:
        succeeded = run_command(args)
    except (LaunchError, NotDeployedError, StatusChangedError) as error:
        sys.exit(f"error: {error}")
    except (BotoCoreError, ClientError) as error:
        hint = DENIED if "explicit deny" in str(error) else ""
        sys.exit(f"error: AWS: {in_one_line(error)}{hint}")
    except (OSError, tarfile.TarError) as error:
        sys.exit(f"error: {in_one_line(error)}")
    if not succeeded:
        sys.exit(1)


if __name__ == "__main__":
    main()
