"""Shows the progress of a run until it ends."""

import shutil
import sys
import time
from datetime import UTC, datetime

from training.launcher.deployment import Deployment, LaunchError
from training.launcher.status import Run, cost_words, duration, format_run, load_run, progress
from training.settings import seconds

POLL_SECONDS = seconds("FOLLOW", 10)


class StatusLine:
    """A status line, overwritten on a terminal; elsewhere, each change prints a new line.

    A context manager, which ends the line.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = ""

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown:
            print()

    def show(self, text: str, prefix: str = "") -> None:
        """Show `text`; `prefix` comes first on a terminal and is ignored elsewhere."""
        if self._terminal:
            columns = shutil.get_terminal_size().columns
            print(f"\r{f'{prefix}{text}'[: columns - 1]}\x1b[K", end="", flush=True)
        elif text != self._shown:
            print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)
        self._shown = text


def follow(deployment: Deployment, run_id: str) -> bool:
    """Show the run until it ends; return whether it succeeded. Ctrl-C does not stop the run.

    Raises LaunchError for a run on SageMaker, as only training.sagemaker imports its results.
    """
    if load_run(deployment, run_id).request.get("service") == "sagemaker":
        raise LaunchError(f"run {run_id} is on SageMaker: `python -m training.sagemaker follow`")
    try:
        with StatusLine() as line:
            while (run := load_run(deployment, run_id)).live.in_progress:
                line.show(describe(run), f"{cost_words(run.dollars)}, {_time_left(run)} left; ")
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(
            f"the run continues; follow it with `python -m training.launch follow {run_id}`, stop "
            f"it with `python -m training.launch stop {run_id}`"
        )
        return False
    print(format_run(run, now=datetime.now(UTC)))
    return run.live.state == "succeeded"


def describe(run: Run) -> str:
    """Return progress, state and message in one line."""
    parts = [progress(run), f"{run.live.state}, {run.live.message}"]
    return "; ".join(part for part in parts if part)


def _time_left(run: Run) -> str:
    deadline = datetime.fromisoformat(run.request["deadline"])
    return duration((deadline - datetime.now(UTC)).total_seconds())
