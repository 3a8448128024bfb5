"""Ends a run before its time: asks its machine for a snapshot, then sees to it that it is gone."""

import time
from collections.abc import Callable

from common.run_record import RunRecord, close_record
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS, StatusLine
from training.launcher.start import close_lost_run
from training.launcher.status import find_standing
from training.runs.active_run import (
    CurrentRun,
    ask_to_stop,
    current_run,
    give_up_run,
    is_active,
    same_launch,
)

ANSWER_SECONDS = 180.0  # for the machine's snapshot, its uploads and its record
END_SECONDS = 120.0  # for EC2 to end a machine


def stop(deployment: Deployment, asked: str | None) -> None:
    """End the active run; `asked` must be its id, if given.

    Raises LaunchError when that run is not active. KeyboardInterrupt leaves the request in place.
    """
    active, groups = current_run(deployment.s3, deployment.bucket), deployment.groups()
    if asked and (active is None or active["run_id"] != asked):
        standing, _ = find_standing(deployment, asked, active, groups)
        raise LaunchError(f"run {asked} is not active: {standing.state}, {standing.message}")
    if active is None:
        if groups.idle and not deployment.fallback_time():
            raise LaunchError("no run is active")
        deployment.end_machines()
        print(f"no run is active; {deployment.named_groups} set to 0")
        return
    record = deployment.record(active["run_id"])
    standing, _ = find_standing(deployment, record.run_id, active, groups)
    if not standing.at_work and groups.idle:
        close_lost_run(record)
        if give_up_run(deployment.s3, deployment.bucket, active):
            deployment.cancel_fallback()
        print(f"run {record.run_id} had come to an end: {standing.message}")
        return
    line = StatusLine()
    try:
        _end(deployment, record, active, machine=standing.machine, line=line)
    except KeyboardInterrupt as error:
        line.close()
        raise LaunchError(
            f"run {record.run_id} may still be ending, and has been asked to: see `status`, or "
            "`stop` again"
        ) from error


def _end(
    deployment: Deployment,
    record: RunRecord,
    active: CurrentRun,
    *,
    machine: str | None,
    line: StatusLine,
) -> None:

    def left() -> bool:
        """No machine works on the run any more; the group rests, or is at work on another."""
        now = current_run(deployment.s3, deployment.bucket)
        return deployment.groups().idle or (now is not None and not same_launch(now, active))

    asked = ask_to_stop(deployment.s3, deployment.bucket, record.run_id)
    if asked and machine:  # otherwise there is nothing to save
        line.show(f"run {record.run_id} is asked to stop; {machine} takes a snapshot, please wait")
        _wait(left, ANSWER_SECONDS)
    if not left():
        line.show(f"{deployment.named_groups} set to 0")
        deployment.end_machines()
    if not _wait(left, END_SECONDS):  # the machine may still write
        line.close()
        raise LaunchError(
            f"{deployment.named_groups} set to 0, but EC2 has not ended the machine of run "
            f"{record.run_id}: look at `status`, and `stop` again"
        )
    # Otherwise the machine has ended the run, and another launch may have resumed it already.
    if is_active(deployment.s3, deployment.bucket, active):
        close_record(record, "stopped", "stopped as asked, without the machine", "stopped")
        if give_up_run(deployment.s3, deployment.bucket, active):
            deployment.cancel_fallback()  # the machine may have put it off once more
    line.close()
    status = record.status()
    print(f"run {record.run_id} {status['state']}: {status['message']}")
    if status["state"] in {"stopped", "failed"}:
        print(f"go on with `python -m training.launch resume {record.run_id}`")


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Whether it was done within `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_SECONDS)
    return True
