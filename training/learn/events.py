"""The losses of a run as TensorBoard reads them: `tensorboard --logdir OUTPUT/events`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


def write_events(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the numbers of all lines of metrics.jsonl to `folder`, over what was there.

    One file from the history, not one for each start: an interruption leaves no trace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
    with SummaryWriter(str(folder)) as writer:
        for line in history:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    writer.add_scalar(name, value, line["step"])
