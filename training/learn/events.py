"""The losses of a run for TensorBoard: `tensorboard --logdir OUTPUT/events`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX import SummaryWriter


def write_events(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write all lines of metrics.jsonl to one event file in `folder`, which replaces earlier ones.

    Rewriting the whole history keeps the file free of traces of interruptions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
    with SummaryWriter(str(folder)) as writer:
        for line in history:
            for name, value in line.items():
                if name != "step":
                    writer.add_scalar(name, value, line["step"])
