"""Shows how a run goes on until it ends, from its own record."""

import shutil
import sys
import time
from datetime import UTC, datetime

from training.launcher.deployment import Deployment, LaunchError
from training.launcher.status import Run, cost_words, duration, format_run, look, progress
from training.settings import seconds

POLL_SECONDS = seconds("FOLLOW", 10)


class StatusLine:
    """One line that is written over on a terminal; elsewhere, a new line for each change."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = ""

    def show(self, text: str, moving: str = "") -> None:
        """`moving`, in front on a terminal, changes all the time and is no news by itself."""
        if self._terminal:
            columns = shutil.get_terminal_size().columns
            print(f"\r{f'{moving}{text}'[: columns - 1]}\x1b[K", end="", flush=True)
        elif text != self._shown:
            print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)
        self._shown = text

    def close(self) -> None:
        if self._terminal and self._shown:
            print()


def follow(deployment: Deployment, run_id: str) -> bool:
    """Show the run until it ends; returns whether it succeeded. Ctrl-C leaves the run alone.

    Raises LaunchError for a run on SageMaker, whose end only training.sagemaker takes up.
    """
    if look(deployment, run_id).request.get("service") == "sagemaker":
        raise LaunchError(f"run {run_id} is on SageMaker: `python -m training.sagemaker follow`")
    line = StatusLine()
    try:
        while (run := look(deployment, run_id)).standing.at_work:
            line.show(describe(run), f"{cost_words(run.dollars)}, {_time_left(run)} left; ")
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        line.close()
        print(
            f"the run goes on without you; look again with "
            f"`python -m training.launch follow {run_id}`, end it with "
            f"`python -m training.launch stop {run_id}`"
        )
        return False
    line.close()
    print(format_run(run, now=datetime.now(UTC)))
    return run.standing.state == "succeeded"


def describe(run: Run) -> str:
    """One line: progress, state, message."""
    parts = [progress(run), f"{run.standing.state}, {run.standing.message}"]
    return "; ".join(part for part in parts if part)


def _time_left(run: Run) -> str:
    deadline = datetime.fromisoformat(run.request["deadline"])
    return duration((deadline - datetime.now(UTC)).total_seconds())
