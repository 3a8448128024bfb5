"""Where the time of a step goes, as measured by torch.profiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

STEPS = schedule(wait=1, warmup=1, active=3, repeat=1)  # the first steps are not representative
ROWS = 30  # of the table


@contextmanager
def profiled(folder: Path) -> Iterator[profile]:
    """Profile three steps; the caller calls `step()` of the result after each step.

    Afterwards, `profile.txt` in `folder` is a table of operators by their own time, and
    `trace.json` can be opened in chrome://tracing or ui.perfetto.dev.
    """

    def write(finished: profile) -> None:
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = finished.key_averages().table(sort_by=order, row_limit=ROWS)
        (folder / "profile.txt").write_text(table)
        finished.export_chrome_trace(str(folder / "trace.json"))

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, schedule=STEPS, on_trace_ready=write) as running:
        yield running
