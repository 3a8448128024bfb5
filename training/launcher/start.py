"""Starts and resumes runs: the request first, then the bookings, then the machine."""

import dataclasses
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from botocore.exceptions import BotoCoreError, ClientError

from common.command import confirmed
from common.run_record import (
    VERSION,
    Attempt,
    Request,
    RunRecord,
    StatusChangedError,
    Work,
    close_last_attempt,
    close_record,
    utc_now,
)
from common.storage import list_keys
from training.launcher.arguments import LaunchOptions
from training.launcher.code import ON_EC2, pack_code
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.preflight import Plan, make_plan
from training.launcher.status import duration, find_live_status
from training.runs.active_run import (
    CurrentRun,
    RunActiveError,
    activate_run,
    current_run,
    deactivate_run,
    is_active,
)


def start(
    deployment: Deployment, work: Work, options: LaunchOptions, fallback_minutes: float
) -> str:
    """Start a new run; return its id.

    Raises LaunchError if a check fails or the user declines, RunActiveError if another run is
    active.
    """
    run_id = new_run_id(work["arch"])
    record = deployment.record(run_id)
    plan = make_plan(deployment, work, runtime=None, busy=_busy(deployment))
    _confirm_plan(run_id, plan, options, fallback_minutes)
    request = Request(
        **work,  # type: ignore[typeddict-item]  # it has the keys of Work only
        version=VERSION,
        run_id=run_id,
        deadline=_deadline(options.max_hours),
        estimate=dataclasses.asdict(plan.estimate),
        chunks=plan.chunks,
        runtime=plan.runtime,
        fallback_minutes=fallback_minutes,
    )
    record.s3.put_object(
        Bucket=record.bucket, Key=record.key("code.tar.gz"), Body=pack_code(ON_EC2)
    )
    record.write("request.json", request)
    record.set_status("requested", f"requested {utc_now()}", [])
    run = _new_launch(run_id, plan)
    try:
        _activate(deployment, run)
    except RunActiveError:
        record.set_status("failed", "not started, another run started first", [])
        raise
    with _failed_on_error(deployment, run, record, []):
        _start_machine(deployment, run, request)
    print(f"started; its record: {record.uri('')}")
    return run_id


def resume(
    deployment: Deployment, run_id: str, options: LaunchOptions, fallback_minutes: float
) -> str:
    """Resume a run that has ended without success; return its id.

    Code, wheels and arguments stay the same; the deadline is new. Raises LaunchError if the run
    cannot be resumed, RunActiveError if another run is active.
    """
    record = deployment.record(run_id)
    request = _resumable(deployment, record)
    plan = make_plan(deployment, request, runtime=request["runtime"], busy=_busy(deployment))
    kept = bool(list_keys(record.s3, record.bucket, f"checkpoints/{run_id}/"))
    print(
        "  it continues from its checkpoints, so it needs less than this:"
        if kept
        else "  it has no checkpoints, or they have expired: it starts from the beginning"
    )
    _confirm_plan(run_id, plan, options, fallback_minutes)
    run = _new_launch(run_id, plan)
    _activate(deployment, run)
    attempts = close_last_attempt(record.status()["attempts"], request, "lost")
    with _failed_on_error(deployment, run, record, attempts):
        request["deadline"] = _deadline(options.max_hours)
        request["fallback_minutes"] = fallback_minutes
        request["earlier_attempts"] = len(attempts)
        record.write("request.json", request)
        record.set_status("requested", f"resumed {utc_now()}", attempts)
        _start_machine(deployment, run, request)
    print(f"resumed; its record: {record.uri('')}")
    return run_id


def _resumable(deployment: Deployment, record: RunRecord) -> Request:
    """Return the request of a run; raises LaunchError if it cannot be resumed."""
    run_id = record.run_id
    active, groups = current_run(deployment.s3, deployment.bucket), deployment.groups()
    live, status = find_live_status(deployment, run_id, active, groups)
    if live.in_progress:
        raise LaunchError(f"run {run_id} is {live.state}: {live.message}")
    if live.state == "succeeded":
        raise LaunchError(f"run {run_id} has succeeded: start a new one")
    if record.key("code.tar.gz") not in list_keys(record.s3, record.bucket, record.key("code")):
        raise LaunchError(f"{record.uri('code.tar.gz')} is missing: start a new run")
    request = record.request()
    check_version(request)
    if request.get("service") == "sagemaker":
        raise LaunchError(
            f"run {run_id} is on SageMaker: use `python -m training.sagemaker resume {run_id}`"
        )
    print(f"run {run_id}, {live.state} after {len(status['attempts'])} attempts")
    return request


def check_version(request: Request) -> None:
    """Raise LaunchError for a run that an older version of this code started."""
    if request.get("version") != VERSION:
        raise LaunchError(
            f"run {request['run_id']} is from an older version of this code: start a new one"
        )


def new_run_id(arch: str) -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{arch}-{secrets.token_hex(2)}"


def _new_launch(run_id: str, plan: Plan) -> CurrentRun:
    return CurrentRun(
        run_id=run_id, runtime=plan.runtime, launch=secrets.token_hex(8), launched=utc_now()
    )


def _deadline(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds")


def _confirm_plan(run_id: str, plan: Plan, options: LaunchOptions, fallback_minutes: float) -> None:
    """Print time and cost, and ask the user; raises LaunchError as `confirm` does."""
    estimate, purchase = plan.estimate, plan.groups.purchases[0].replace("_", "-")
    print(
        f"run {run_id}: about {duration(estimate.seconds)} and ${estimate.dollars:.3f} on a "
        f"{plan.instance_type}, {purchase}; ended by force after "
        f"{duration(options.max_hours * 3600)}\n"
        f"  basis: {estimate.basis}"
    )
    if plan.fallback_dollars is not None:
        print(
            f"  on demand, for ${plan.fallback_dollars:.3f}, if no spot machine works on it for "
            f"{duration(fallback_minutes * 60)}"
        )
    confirm(options.yes)


def confirm(yes: bool) -> None:
    """Ask whether to start unless `yes`; raises LaunchError if the user declines."""
    if not yes and not confirmed("Start it?"):
        raise LaunchError("not started")


def _busy(deployment: Deployment) -> str | None:
    """Return a message if the groups are busy, None if a run can start."""
    try:
        _find_ended(deployment)
    except RunActiveError as error:
        return str(error)
    return None


def _find_ended(deployment: Deployment) -> CurrentRun | None:
    """Return the active run if it has ended without reporting it, None if no run is active.

    Raises RunActiveError if a run is in progress or a machine is left.
    """
    active = current_run(deployment.s3, deployment.bucket)
    groups = deployment.groups()  # after the pointer, which a run that starts meanwhile changes
    stop = "`python -m training.launch stop`"
    if active:
        live, _ = find_live_status(deployment, active["run_id"], active, groups)
        if live.in_progress:
            raise RunActiveError(
                f"run {active['run_id']} is {live.state}, {live.message}: "
                f"wait for its end, or run {stop}"
            )
    if not groups.idle:
        raise RunActiveError(f"the machine of an ended run still exists: wait, or run {stop}")
    return active


def _activate(deployment: Deployment, run: CurrentRun) -> None:
    """Make `run` the active run, and close the record of one that ended without reporting it.

    Raises RunActiveError if a run is in progress or another launch came first.
    """
    ended = _find_ended(deployment)
    activate_run(deployment.s3, deployment.bucket, run, instead_of=ended)
    if ended and ended["run_id"] != run["run_id"]:
        close_lost_run(deployment.record(ended["run_id"]))


def close_lost_run(record: RunRecord) -> None:
    """Record that a run has failed, unless its record says how it ended."""
    close_record(record, "failed", "ended without reporting a status, see `logs`", "lost")


@contextmanager
def _failed_on_error(
    deployment: Deployment, run: CurrentRun, record: RunRecord, attempts: list[Attempt]
) -> Iterator[None]:
    """End the run if its start fails, as no machine will do so."""
    try:
        yield
    except BaseException:  # including Ctrl-C
        try:
            # Another launch that has replaced this run has also closed its record.
            if deactivate_run(deployment.s3, deployment.bucket, run):
                with suppress(StatusChangedError):  # by a machine that started nevertheless
                    record.set_status("failed", "could not be started", attempts)
        finally:
            with suppress(BotoCoreError, ClientError):  # report the first error only
                if current_run(deployment.s3, deployment.bucket) is None:
                    deployment.cancel_fallback()
        raise


def _start_machine(deployment: Deployment, run: CurrentRun, request: Request) -> None:
    """Book the end and the fallback, then request a machine.

    Raises RunActiveError if this launch took so long that another run has become active.
    """
    _check_still_active(deployment, run)  # so as not to replace the bookings of another run
    deadline = datetime.fromisoformat(request["deadline"])
    deployment.book_end(deadline)
    deployment.book_fallback(request["fallback_minutes"], deadline)
    deployment.suspend_az_rebalance()
    _check_still_active(deployment, run)
    deployment.start_machine()


def _check_still_active(deployment: Deployment, run: CurrentRun) -> None:
    if not is_active(deployment.s3, deployment.bucket, run):
        raise RunActiveError(f"run {run['run_id']} was stopped or replaced while it was starting")
