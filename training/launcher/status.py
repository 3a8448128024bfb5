"""The status of a run: its record, compared with what the Auto Scaling groups do."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from botocore.exceptions import ClientError

from common.run_record import ENDED, Attempt, Request, State, Status, billed_seconds
from common.storage import list_keys
from common.table import money
from costs.estimate import DEFAULT_VOLUME_GIB, run_cost, total
from costs.prices import PriceError, Prices, load_prices
from training.launcher.deployment import Deployment, Groups, LaunchError
from training.runs.active_run import CurrentRun, current_run

STARTING = timedelta(minutes=2)  # the longest time from a launch to its request for a machine


@dataclass(frozen=True, kw_only=True)
class LiveStatus:
    """A run's state and message.

    `ended` is the state of a run that its record has as in progress, although no machine works on
    it or will.
    """

    state: State | Literal["ended"]
    message: str
    machine: str | None = None  # that is training

    @property
    def in_progress(self) -> bool:
        return self.state not in ENDED and self.state != "ended"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything about a run that `status` prints."""

    run_id: str
    live: LiveStatus
    request: Request
    attempts: list[Attempt]
    epoch: dict[str, Any] | None  # the last line of metrics.jsonl
    chunks: int  # of features, stored so far
    seconds: list[float]  # billed, for each attempt
    dollars: float | None  # None if a machine has no known price


def choose_run(deployment: Deployment, requested: str | None) -> str:
    """Return `requested`, or else the active run, or else the newest run.

    Raises LaunchError if there is no run.
    """
    if requested:
        return requested
    active = current_run(deployment.s3, deployment.bucket)
    if active:
        return active["run_id"]
    runs = deployment.run_ids()
    if not runs:
        raise LaunchError("there is no run yet: start one with `python -m training.launch`")
    return runs[0]


def find_live_status(
    deployment: Deployment, run_id: str, active: CurrentRun | None, groups: Groups
) -> tuple[LiveStatus, Status]:
    """Read a run's record, and compare it with the active run and the groups, read before it.

    A machine that ends a run writes the record first and sets the groups last, so reading in the
    opposite order never reports a regular end as `ended`. Raises LaunchError for a run without a
    record.
    """
    try:
        status = deployment.record(run_id).status()
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchKey":
            raise
        raise LaunchError(
            f"there is no run {run_id}: see `python -m training.launch list`"
        ) from error
    if status["state"] not in ENDED and _on_sagemaker(deployment, run_id):
        message = f"on SageMaker: see `python -m training.sagemaker follow {run_id}`"
        return LiveStatus(state=status["state"], message=message), status
    return _compare(deployment, run_id, status, active, groups), status


def _on_sagemaker(deployment: Deployment, run_id: str) -> bool:
    return deployment.record(run_id).request().get("service") == "sagemaker"


def _compare(
    deployment: Deployment, run_id: str, status: Status, active: CurrentRun | None, groups: Groups
) -> LiveStatus:
    state, message = status["state"], status["message"]
    if active and active["run_id"] == run_id and groups.idle and _is_young(active):
        # The record of a resumed run still has its previous end.
        return LiveStatus(state="requested", message="the launch is under way")
    if state in ENDED:
        old = _age(status["updated"]) > STARTING  # a machine sets the group to 0 after the record
        if active is None and groups.desired and old:
            message += (
                f"; but a machine is still requested: `stop` sets {deployment.group_label} to 0"
            )
        return LiveStatus(state=state, message=message)
    if active is None or active["run_id"] != run_id:
        return _ended(state)
    fallback = None if groups.instance_ids else deployment.fallback_time()
    if groups.idle and not fallback:
        return _ended(state)
    machine = status["attempts"][-1]["instance_id"] if state == "running" else None
    if not groups.instance_ids:
        machine, message = None, _waiting(deployment, fallback)
    elif machine not in groups.instance_ids:
        machine, message = None, f"machine {groups.instance_ids[0]} is booting"
    if active.get("stop"):
        message += "; asked to stop"
    return LiveStatus(state=state, message=message, machine=machine)


def _ended(state: State) -> LiveStatus:
    message = f"ended without reporting a status while {state}, see `logs`"
    return LiveStatus(state="ended", message=message)


def _waiting(deployment: Deployment, fallback: datetime | None) -> str:
    message = "waiting for a machine"
    if fallback:
        message += f"; an on-demand machine is booked for {fallback:%H:%M} UTC"
    activity = deployment.last_activity()
    return f"{message}; last activity of the group: {activity}" if activity else message


def _is_young(launch: CurrentRun) -> bool:
    launched = launch.get("launched")
    return launched is not None and _age(launched) < STARTING


def _age(moment: str) -> timedelta:
    return datetime.now(UTC) - datetime.fromisoformat(moment)


def load_run(deployment: Deployment, run_id: str) -> Run:
    """Collect everything about a run; raises LaunchError for a run without a record."""
    active = current_run(deployment.s3, deployment.bucket)
    groups = deployment.groups()
    live, status = find_live_status(deployment, run_id, active, groups)
    request = deployment.record(run_id).request()
    seconds = billed_seconds(status["attempts"], request)
    return Run(
        run_id=run_id,
        live=live,
        request=request,
        attempts=status["attempts"],
        epoch=_last_epoch(deployment, run_id),
        chunks=_stored_chunks(deployment, run_id),
        seconds=seconds,
        dollars=attempt_dollars(status["attempts"], seconds),
    )


def attempt_dollars(attempts: list[Attempt], seconds: list[float]) -> float | None:
    """Return the cost of attempts with the default disk, None if a machine has no known price."""
    prices = load_prices()
    try:
        return sum(
            _dollars(attempt, paid, prices) for attempt, paid in zip(attempts, seconds, strict=True)
        )
    except PriceError:
        return None


def _dollars(attempt: Attempt, paid: float, prices: Prices) -> float:
    instance_type = attempt["instance_type"]
    if instance_type.startswith("ml."):  # on SageMaker, whose disk costs a hundredth of this
        return paid / 3600 * prices.sagemaker_hour(instance_type, "training").dollars
    return total(run_cost(paid, instance_type, attempt["purchase"], DEFAULT_VOLUME_GIB, prices))


def _last_epoch(deployment: Deployment, run_id: str) -> dict[str, Any] | None:
    key = deployment.record(run_id).key("metrics.jsonl")
    if key not in list_keys(deployment.s3, deployment.bucket, key):
        return None
    content = deployment.s3.get_object(Bucket=deployment.bucket, Key=key)["Body"].read()
    lines = content.decode().splitlines()
    epoch: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return epoch


def _stored_chunks(deployment: Deployment, run_id: str) -> int:
    keys = list_keys(deployment.s3, deployment.bucket, f"checkpoints/{run_id}/")
    chunks = [key for key in keys if "/features-" in key and key.endswith(".npy")]
    return len({key.partition("/features-")[2] for key in chunks})


def format_run(run: Run, *, now: datetime) -> str:
    """Format a run as `status` prints it."""
    request = run.request
    deadline = datetime.fromisoformat(request["deadline"])
    left = f", {duration((deadline - now).total_seconds())} left" if run.live.in_progress else ""
    rows = [
        ("state", run.live.state),
        ("message", run.live.message),
        ("trains", f"{request['arch']} on {request['dataset']}"),
        ("deadline", f"{deadline:%Y-%m-%d %H:%M} UTC{left}"),
        *((f"attempt {number}", line) for number, line in enumerate(_attempt_lines(run), start=1)),
        ("progress", progress(run)),
        ("cost", f"{cost_words(run.dollars)}, {duration(sum(run.seconds))} of machine time"),
    ]
    return "\n".join(
        [f"run {run.run_id}", *(f"  {name:<10} {text}" for name, text in rows if text)]
    )


def _attempt_lines(run: Run) -> list[str]:
    lines = []
    for attempt, seconds in zip(run.attempts, run.seconds, strict=True):
        started = datetime.fromisoformat(attempt["started"])
        last = attempt is run.attempts[-1]
        outcome: str = attempt.get("outcome", "running" if last and run.live.in_progress else "?")
        end = f"{datetime.fromisoformat(attempt['ended']):%H:%M}" if "ended" in attempt else ""
        lines.append(
            f"{attempt['instance_id']}  {attempt['instance_type']}  {attempt['zone']}  "
            f"{started:%H:%M}–{end:<5}  {duration(seconds)}, {outcome}"
        )
    return lines


def progress(run: Run) -> str:
    """Describe the last epoch, or, before the first epoch, the stored chunks of features."""
    if run.epoch:
        return (
            f"epoch {run.epoch['epoch']} of {run.request['epochs']}, loss "
            f"{run.epoch['train_loss']:.3f}, validation {run.epoch['validation_loss']:.3f}, "
            f"{run.epoch['validation_accuracy']:.1%} right"
        )
    if run.chunks:
        return f"features, {run.chunks} of {run.request['chunks']} chunks"
    return ""


def cost_words(dollars: float | None) -> str:
    return "price unknown" if dollars is None else f"${money(dollars)}"


def duration(seconds: float) -> str:
    """Format seconds, such as `1 h 05 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
