"""Starts a run, or goes on with one: request, what is booked, and only then the machine."""

import argparse
import dataclasses
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from botocore.exceptions import BotoCoreError, ClientError

from common.command import confirmed
from common.run_record import (
    Attempt,
    Request,
    RunRecord,
    StatusChangedError,
    close_record,
    closed,
    utc_now,
)
from common.storage import list_keys
from training.launcher.code import ON_EC2, pack_code
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.preflight import Plan, make_plan
from training.launcher.status import duration, find_standing
from training.runs.active_run import (
    CurrentRun,
    RunActiveError,
    current_run,
    give_up_run,
    is_active,
    start_run,
)


def start(deployment: Deployment, args: argparse.Namespace) -> str:
    """Start a new run; returns its id.

    Raises LaunchError when something is missing or the user says no, RunActiveError when another
    run is active.
    """
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{args.arch}-{secrets.token_hex(2)}"
    record = deployment.record(run_id)
    plan = make_plan(
        deployment,
        dataset=args.dataset,
        arch=args.arch,
        epochs=args.epochs,
        mode=args.mode,
        ensemble_size=args.ensemble_size,
        runtime=None,
        at_work=_find_work(deployment),
    )
    _ask(run_id, plan, args)
    request = Request(
        run_id=run_id,
        dataset=args.dataset,
        arch=args.arch,
        train_arguments=args.train_arguments,
        deadline=_deadline(args.max_hours),
        estimate=dataclasses.asdict(plan.estimate),
        mode=args.mode,
        ensemble_size=args.ensemble_size,
        epochs=args.epochs,
        chunks=plan.chunks,
        runtime=plan.runtime,
        fallback_minutes=args.fallback_minutes,
    )
    record.s3.put_object(
        Bucket=record.bucket, Key=record.key("code.tar.gz"), Body=pack_code(ON_EC2)
    )
    record.write("request.json", request)
    record.set_status("requested", f"requested {utc_now()}", [])
    run = _launch_of(run_id, plan)
    try:
        _take_place(deployment, run)
    except RunActiveError:
        record.set_status("failed", "not started, another run was faster", [])
        raise
    with _given_up_on_failure(deployment, run, record, []):
        _start_machine(deployment, run, request)
    print(f"started; its record: {record.uri('')}")
    return run_id


def resume(deployment: Deployment, args: argparse.Namespace) -> str:
    """Go on with a run that has ended without success; returns its id.

    The same code, wheels and arguments, a new deadline. Raises LaunchError for a run that cannot
    go on, RunActiveError when another run is active.
    """
    record = deployment.record(args.run)
    active, groups = current_run(deployment.s3, deployment.bucket), deployment.groups()
    standing, status = find_standing(deployment, args.run, active, groups)
    if standing.at_work:
        raise LaunchError(f"run {args.run} is {standing.state}: {standing.message}")
    if standing.state == "succeeded":
        raise LaunchError(f"run {args.run} has succeeded: start a new one")
    if record.key("code.tar.gz") not in list_keys(record.s3, record.bucket, record.key("code")):
        raise LaunchError(f"{record.uri('code.tar.gz')} is missing: start a new run")
    request = record.request()
    check_version(request)
    if request.get("service") == "sagemaker":
        raise LaunchError(f"run {args.run} is on SageMaker: `python -m training.sagemaker resume`")
    print(f"run {args.run}, {standing.state} after {len(status['attempts'])} attempts")
    plan = make_plan(
        deployment,
        dataset=request["dataset"],
        arch=request["arch"],
        epochs=request["epochs"],
        mode=request["mode"],
        ensemble_size=request["ensemble_size"],
        runtime=request["runtime"],
        at_work=_find_work(deployment),
    )
    kept = bool(list_keys(record.s3, record.bucket, f"checkpoints/{args.run}/"))
    print(
        "  from its checkpoints, so that less than this is left:"
        if kept
        else "  its checkpoints have expired, or there never were any: it starts from zero"
    )
    _ask(args.run, plan, args)
    run = _launch_of(args.run, plan)
    _take_place(deployment, run)
    attempts = closed(record.status()["attempts"], request, "lost")
    with _given_up_on_failure(deployment, run, record, attempts):
        request["deadline"] = _deadline(args.max_hours)
        request["fallback_minutes"] = args.fallback_minutes
        request["earlier_attempts"] = len(attempts)
        record.write("request.json", request)
        record.set_status("requested", f"resumed {utc_now()}", attempts)
        _start_machine(deployment, run, request)
    print(f"resumed; its record: {record.uri('')}")
    return run["run_id"]


def check_version(request: Request) -> None:
    """Raises LaunchError for the request of an older version of this code, which asked for less."""
    if Request.__required_keys__ - request.keys():
        raise LaunchError(
            f"run {request['run_id']} is of an older version of this code: start a new one"
        )


def _launch_of(run_id: str, plan: Plan) -> CurrentRun:
    return CurrentRun(
        run_id=run_id, runtime=plan.runtime, launch=secrets.token_hex(8), launched=utc_now()
    )


def _deadline(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds")


def _ask(run_id: str, plan: Plan, args: argparse.Namespace) -> None:
    """State time and cost. Raises LaunchError like `confirm`."""
    estimate, purchase = plan.estimate, plan.groups.purchases[0].replace("_", "-")
    print(
        f"run {run_id}: about {duration(estimate.seconds)} and ${estimate.dollars:.3f} on a "
        f"{plan.instance_type}, {purchase}; ended by force after "
        f"{duration(args.max_hours * 3600)}\n"
        f"  basis: {estimate.basis}"
    )
    if plan.fallback_dollars is not None:
        print(
            f"  on demand, for ${plan.fallback_dollars:.3f}, when no spot machine has worked on it "
            f"for {duration(args.fallback_minutes * 60)}"
        )
    confirm(args.yes)


def confirm(yes: bool) -> None:
    """Raises LaunchError unless the user, or --yes, says to start."""
    if not yes and not confirmed("Start it?"):
        raise LaunchError("not started")


def _find_work(deployment: Deployment) -> str | None:
    """What the group is busy with, in words; None when a run may start."""
    try:
        _find_ended(deployment)
    except RunActiveError as error:
        return str(error)
    return None


def _find_ended(deployment: Deployment) -> CurrentRun | None:
    """The active run if it has ended without a word; None if there is none.

    Raises RunActiveError when the group is at work, or about to be.
    """
    active = current_run(deployment.s3, deployment.bucket)
    groups = deployment.groups()  # after the pointer: a run that starts in between changes that
    stop = "`python -m training.launch stop`"
    if active:
        standing, _ = find_standing(deployment, active["run_id"], active, groups)
        if standing.at_work:
            raise RunActiveError(
                f"run {active['run_id']} is {standing.state}, {standing.message}: "
                f"wait for its end, or {stop}"
            )
    if not groups.idle:
        raise RunActiveError(f"the machine of a run that is over is not gone: wait, or {stop}")
    return active


def _take_place(deployment: Deployment, run: CurrentRun) -> None:
    """Make `run` the active one, and close the record of one that ended without a word.

    Raises RunActiveError when another launch was faster, or a run is at work.
    """
    ended = _find_ended(deployment)
    start_run(deployment.s3, deployment.bucket, run, instead_of=ended)
    if ended and ended["run_id"] != run["run_id"]:
        close_lost_run(deployment.record(ended["run_id"]))


def close_lost_run(record: RunRecord) -> None:
    """Note that a run has failed, if its record does not say how it ended."""
    close_record(record, "failed", "ended without a word, see `logs`", "lost")


@contextmanager
def _given_up_on_failure(
    deployment: Deployment, run: CurrentRun, record: RunRecord, attempts: list[Attempt]
) -> Iterator[None]:
    """When the start breaks off, no machine will come to end the run: do it here."""
    try:
        yield
    except BaseException:  # Ctrl-C as well
        try:
            # Unless another launch has taken its place, and has closed its record.
            if give_up_run(deployment.s3, deployment.bucket, run):
                with suppress(StatusChangedError):  # by a machine that came nevertheless
                    record.set_status("failed", "could not be started", attempts)
        finally:
            with suppress(BotoCoreError, ClientError):  # the first error is the one to be told
                if current_run(deployment.s3, deployment.bucket) is None:
                    deployment.cancel_fallback()
        raise


def _start_machine(deployment: Deployment, run: CurrentRun, request: Request) -> None:
    """Book the end and the fallback, then ask for a machine.

    Raises RunActiveError when this run is no longer the active one: this launch took too long.
    """
    _check_still_active(deployment, run)  # or the booking of another run would be overwritten
    deadline = datetime.fromisoformat(request["deadline"])
    deployment.book_end(deadline)
    deployment.book_fallback(request["fallback_minutes"], deadline)
    deployment.keep_zones()
    _check_still_active(deployment, run)
    deployment.start_machine()


def _check_still_active(deployment: Deployment, run: CurrentRun) -> None:
    if not is_active(deployment.s3, deployment.bucket, run):
        raise RunActiveError(f"run {run['run_id']} was stopped or replaced while it was starting")
