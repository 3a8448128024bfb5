"""Run training.train on SageMaker, on one machine or several, or search for its best settings.

Jobs use managed spot training by default, and an interrupted job continues from its checkpoints.
`follow` imports the results into the run's record when the job has ended.

    python -m training.sagemaker train --arch resnet50 --follow
    python -m training.sagemaker train --instances 2 -- --mode finetune
    python -m training.sagemaker search --trials 20

SageMaker Debugger is closed to new customers. Instead, metric definitions send the losses to
CloudWatch, and `-- --profile` writes a profile by torch.profiler to the job's output.
"""

import json
import sys
import tarfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Parameter

from common.command import in_one_line, interruptible
from common.flags import Hours, PositiveInt, Switch, command_line, run
from common.outputs import NotDeployedError
from common.run_record import Attempt, StatusChangedError, Work
from training.launch import DENIED
from training.launcher.arguments import LaunchOptions, ModelOptions, TrainFlags, parse_training
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.start import confirm, new_run_id
from training.launcher.status import duration
from training.sagemaker import PROGRAM
from training.sagemaker.preflight import JobPlan, make_job_plan
from training.sagemaker.request import Job
from training.sagemaker.run import (
    choose_run,
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

# SageMaker uploads and keeps all checkpoints, and a new machine downloads them all.
FINETUNE_CHECKPOINTS = 12  # at most, within --max-hours
MIN_CHECKPOINT_SECONDS = 300
VOLUME_GIB = 30
INSTANCE_TYPE = "ml.m5.large"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The machines of a job; by default those of the run's last job, if there was one."""

    instance_type: str | None = None
    """SageMaker instance type [default: ml.m5.large; with resume, the last job's]."""
    instances: PositiveInt | None = None
    """Machines that share a training, with torchrun [default: 1; with resume, the last job's]."""
    volume_gib: PositiveInt | None = None
    """Disk of each machine in GiB [default: 30; with resume, the last job's]."""
    on_demand: Switch = False
    """Use on-demand machines, which cost more and are never interrupted."""
    max_wait_hours: Hours | None = None
    """Time limit for waiting for spot machines and training [default: twice --max-hours]."""
    dry_run: Switch = False
    """Make the checks and print the request as JSON, but start nothing."""


Run = Annotated[
    str | None, Parameter(help="Id of a run or search [default: the newest run on SageMaker].")
]
Output = Annotated[Path, Parameter(help="Folder for best.json and the plots of a search.")]
app = command_line(PROGRAM, __doc__)


@app.command
def train(
    *train_flags: TrainFlags,
    model: ModelOptions = ModelOptions(),
    machines: MachineOptions = MachineOptions(),
    options: LaunchOptions = LaunchOptions(),
) -> bool:
    """Train once, on one machine or several."""
    work, given = parse_training(train_flags, model, f"{PROGRAM} train")
    job = _job(new_run_id(model.arch), work, given, machines, options)
    return _start_run(Deployment.connect(), job, machines, options, resumed=False)


@app.command
def resume(
    run: Annotated[str, Parameter(help="Id of a run, as in `training.launch list`.")],
    /,
    *,
    machines: MachineOptions = MachineOptions(),
    options: LaunchOptions = LaunchOptions(),
) -> bool:
    """Resume a run that was stopped or has failed, with the same code, from its checkpoints."""
    deployment = Deployment.connect()
    request = resumable(deployment, run)
    attempts = deployment.record(run).status()["attempts"]
    model = ModelOptions(dataset=request["dataset"], arch=request["arch"])
    work, given = parse_training(request["train_arguments"], model, f"{PROGRAM} train")
    job = _job(run, work, given, machines, options, attempts[-1] if attempts else None)
    return _start_run(deployment, job, machines, options, resumed=True)


@app.command
def search(
    *train_flags: TrainFlags,
    model: ModelOptions = ModelOptions(),
    machines: MachineOptions = MachineOptions(),
    options: LaunchOptions = LaunchOptions(),
    trials: Annotated[PositiveInt, Parameter(help="Number of trainings.")] = 20,
    parallel: Annotated[PositiveInt, Parameter(help="Number of trainings at a time.")] = 2,
    output: Output = Path("search"),
) -> bool:
    """Let SageMaker's automatic model tuning search the settings that training.hpo searches."""
    work, given = parse_training(train_flags, model, f"{PROGRAM} search")
    if searched := sorted(given.keys() & SPACES[work["mode"]]):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in searched)
        raise LaunchError(f"{flags}: set by the search, do not give after --")
    deployment = Deployment.connect()
    job = _job(new_search_name(), work, given, machines, options)
    with _dry_run_to_stderr(machines):
        plan = make_job_plan(deployment, job, trials=trials, parallel=parallel)
        _print_plan(job, plan, options, "search")
    if machines.dry_run and "image" not in plan.failed:  # the request needs the image
        print(json.dumps(dry_search(deployment, job, trials, parallel), indent=1))
    if not _confirmed(plan, machines, options):
        return True
    start_search(deployment, job, trials, parallel)
    print(f"started search {job.run_id}")
    if options.follow:
        return follow_search(deployment, job.run_id, output)
    print(f"get its results with `{PROGRAM} follow {job.run_id}`")
    return True


@app.command
def follow(run: Run = None, /, *, output: Output = Path("search")) -> bool:
    """Show the progress of a run or a search until it ends, and import its results."""
    deployment = Deployment.connect()
    if run and is_search(run):
        return follow_search(deployment, run, output)
    return follow_run(deployment, choose_run(deployment, run))


@app.command
def stop(run: Run = None, /) -> bool:
    """Stop a run or a search."""
    deployment = Deployment.connect()
    if run and is_search(run):
        stop_search(deployment, run)
    else:
        stop_job(deployment, choose_run(deployment, run))
    return True


def _start_run(
    deployment: Deployment,
    job: Job,
    machines: MachineOptions,
    options: LaunchOptions,
    *,
    resumed: bool,
) -> bool:
    with _dry_run_to_stderr(machines):
        plan = make_job_plan(deployment, job, trials=1, parallel=1)
        _print_plan(job, plan, options, "run")
    if machines.dry_run and "image" not in plan.failed:  # the request needs the image
        print(json.dumps(dry_job(deployment, job), indent=1))
    if not _confirmed(plan, machines, options):
        return True
    start_job(deployment, job, plan, resumed=resumed)
    print(f"{'resumed' if resumed else 'started'} run {job.run_id}")
    if options.follow:
        return follow_run(deployment, choose_run(deployment, job.run_id))
    print(f"get its results with `{PROGRAM} follow {job.run_id}`")
    return True


def _dry_run_to_stderr(machines: MachineOptions) -> AbstractContextManager[object]:
    """Print to standard error in a dry run, whose standard output is only the request."""
    return redirect_stdout(sys.stderr if machines.dry_run else sys.stdout)


def _confirmed(plan: JobPlan, machines: MachineOptions, options: LaunchOptions) -> bool:
    """Ask whether to start; return False in a dry run.

    Raises LaunchError if a check failed or the user declines.
    """
    if plan.failed:
        raise LaunchError(f"not started, see above: {', '.join(plan.failed)}")
    if machines.dry_run:
        return False
    confirm(options.yes)
    return True


def _job(
    name: str,
    work: Work,
    given: dict[str, Any],
    machines: MachineOptions,
    options: LaunchOptions,
    last: Attempt | None = None,
) -> Job:
    """Build a job or a search; `last` is the run's last job, if there was one.

    Raises LaunchError if --max-wait-hours is less than --max-hours.
    """
    max_seconds = round(options.max_hours * 3600)
    hyperparameters: dict[str, Any] = {"arch": work["arch"], **given}
    if work["mode"] == "finetune":
        seconds = max(MIN_CHECKPOINT_SECONDS, max_seconds // FINETUNE_CHECKPOINTS)
        hyperparameters.setdefault("checkpoint_seconds", seconds)
    max_wait = 2 * options.max_hours if machines.max_wait_hours is None else machines.max_wait_hours
    if max_wait < options.max_hours:
        raise LaunchError("--max-wait-hours includes the training: give it at least --max-hours")
    previous: Mapping[str, Any] = last or {}
    on_demand = machines.on_demand or previous.get("purchase") == "on_demand"
    return Job(
        run_id=name,
        work=work,
        instance_type=machines.instance_type or previous.get("instance_type", INSTANCE_TYPE),
        instances=machines.instances or previous.get("machines", 1),
        volume_gib=machines.volume_gib or previous.get("volume_gib", VOLUME_GIB),
        spot=not on_demand,
        max_seconds=max_seconds,
        max_wait_seconds=max_seconds if on_demand else round(max_wait * 3600),
        hyperparameters=hyperparameters,
    )


def _print_plan(
    job: Job, plan: JobPlan, options: LaunchOptions, kind: Literal["run", "search"]
) -> None:
    machines, estimate = f"{job.instances} × {job.instance_type}", plan.estimate
    saved = ", before the savings of managed spot training" if job.spot else ""
    after = " of training" if kind == "run" else ""
    limit = f"ended by force after {duration(options.max_hours * 3600)}{after}"
    print(
        f"{kind} {job.run_id}: about {duration(estimate.seconds)} and ${estimate.dollars:.3f} on "
        f"{machines}{saved}; {limit}"
    )
    print(f"  basis: {estimate.basis}")


@interruptible()
def main() -> None:
    try:
        succeeded = run(app)
    except (LaunchError, NotDeployedError, StatusChangedError) as error:
        sys.exit(f"error: {error}")
    except (BotoCoreError, ClientError) as error:
        hint = DENIED if "explicit deny" in str(error) else ""
        sys.exit(f"error: AWS: {in_one_line(error)}{hint}")
    except (OSError, tarfile.TarError) as error:
        sys.exit(f"error: {in_one_line(error)}")
    if succeeded is False:
        sys.exit(1)


if __name__ == "__main__":
    main()
