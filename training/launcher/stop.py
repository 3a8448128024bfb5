"""Stops a run: asks its machine for a last checkpoint, then ends the machine."""

import time
from collections.abc import Callable

from common.run_record import RunRecord, close_record
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS, StatusLine
from training.launcher.start import close_lost_run
from training.launcher.status import find_live_status
from training.runs.active_run import (
    CurrentRun,
    current_run,
    deactivate_run,
    is_active,
    request_stop,
    same_launch,
)

ANSWER_SECONDS = 180.0  # for the machine's checkpoint, its uploads and its record
END_SECONDS = 120.0  # for EC2 to end a machine


def stop(deployment: Deployment, requested: str | None) -> None:
    """Stop the active run.

    Raises LaunchError if no run is active, or another one than `requested`. After Ctrl-C, the
    machine may still end the run.
    """
    active, groups = current_run(deployment.s3, deployment.bucket), deployment.groups()
    if requested and (active is None or active["run_id"] != requested):
        live, _ = find_live_status(deployment, requested, active, groups)
        raise LaunchError(f"run {requested} is not active: {live.state}, {live.message}")
    if active is None:
        if groups.idle and not deployment.fallback_time():
            raise LaunchError("no run is active")
        deployment.end_machines()
        print(f"no run is active; {deployment.group_label} set to 0")
        return
    record = deployment.record(active["run_id"])
    live, _ = find_live_status(deployment, record.run_id, active, groups)
    if not live.in_progress and groups.idle:
        close_lost_run(record)
        if deactivate_run(deployment.s3, deployment.bucket, active):
            deployment.cancel_fallback()
        print(f"run {record.run_id} had already ended: {live.message}")
        return
    try:
        _end(deployment, record, active, live.machine)
    except KeyboardInterrupt as error:
        raise LaunchError(
            f"run {record.run_id} has been asked to stop: see `status`, or `stop` again"
        ) from error


def _end(
    deployment: Deployment, record: RunRecord, active: CurrentRun, machine: str | None
) -> None:
    def machine_left() -> bool:
        """Whether no machine works on this run: the groups are idle or work on another run."""
        now = current_run(deployment.s3, deployment.bucket)
        return deployment.groups().idle or (now is not None and not same_launch(now, active))

    requested = request_stop(deployment.s3, deployment.bucket, record.run_id)
    with StatusLine() as line:
        if requested and machine:  # otherwise there is nothing to save
            line.show(f"stopping run {record.run_id}: waiting for the last checkpoint of {machine}")
            _wait(machine_left, ANSWER_SECONDS)
        if not machine_left():
            line.show(f"{deployment.group_label} set to 0")
            deployment.end_machines()
        if not _wait(machine_left, END_SECONDS):  # the machine may still write
            raise LaunchError(
                f"{deployment.group_label} set to 0, but EC2 has not ended the machine of run "
                f"{record.run_id}: see `status`, and `stop` again"
            )
    # If not, the machine has ended the run, and another launch may already have resumed it.
    if is_active(deployment.s3, deployment.bucket, active):
        close_record(record, "stopped", "stopped by the user without its machine", "stopped")
        if deactivate_run(deployment.s3, deployment.bucket, active):
            deployment.cancel_fallback()  # the machine may have postponed it once more
    status = record.status()
    print(f"run {record.run_id} {status['state']}: {status['message']}")
    if status["state"] in {"stopped", "failed"}:
        print(f"resume it with `python -m training.launch resume {record.run_id}`")


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Poll `done`; return whether it became true within `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_SECONDS)
    return True
