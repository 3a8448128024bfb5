"""Lists the newest runs."""

from datetime import datetime

from botocore.exceptions import ClientError

from common.chosen_model import NoModelError, chosen_model, run_of
from common.run_record import RunRecord, billed_seconds
from common.table import table
from training.launcher.deployment import Deployment, Groups, LaunchError
from training.launcher.status import attempt_dollars, cost_words, duration, find_live_status
from training.runs.active_run import CurrentRun, current_run

SHOWN = 20


def list_runs(deployment: Deployment) -> str:
    """Return a table of the newest runs, the newest first; it marks the run of the chosen model.

    Raises LaunchError if there is no run.
    """
    runs = deployment.run_ids()
    if not runs:
        raise LaunchError("there is no run yet: start one with `python -m training.launch`")
    active, groups = current_run(deployment.s3, deployment.bucket), deployment.groups()
    model = _model_run(deployment)
    rows = [_row(deployment, run_id, active, groups, model) for run_id in runs[:SHOWN]]
    shown = table(["run", "state", "started (UTC)", "machines", "cost", "exact", ""], rows)
    older = len(runs) - SHOWN
    return f"{shown}\nand {older} older runs" if older > 0 else shown


def _row(
    deployment: Deployment,
    run_id: str,
    active: CurrentRun | None,
    groups: Groups,
    model: str | None,
) -> list[str]:
    record = deployment.record(run_id)
    try:
        live, status = find_live_status(deployment, run_id, active, groups)
        request = record.request()
    except (LaunchError, ClientError):
        return [run_id, "no record", *[""] * 5]
    attempts = status["attempts"]
    seconds = billed_seconds(attempts, request)
    started = datetime.fromisoformat(attempts[0]["started"]) if attempts else None
    return [
        run_id,
        live.state,
        f"{started:%Y-%m-%d %H:%M}" if started else "never",
        f"{len(attempts)}, {duration(sum(seconds))}" if attempts else "0",
        cost_words(attempt_dollars(attempts, seconds)),
        _accuracy(record) if live.state == "succeeded" else "",
        "← model" if run_id == model else "",
    ]


def _accuracy(record: RunRecord) -> str:
    return f"{record.judged()['accuracy']['value']:.1%}"


def _model_run(deployment: Deployment) -> str | None:
    """Return the run whose model the next deployment of the endpoint serves, if there is one."""
    try:
        return run_of(chosen_model(deployment.session))
    except NoModelError:
        return None
