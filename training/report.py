"""Pictures of a run."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator


def plot_loss(metrics_file: Path, picture: Path) -> None:
    """Draw training and validation loss over the epochs of a metrics.jsonl."""
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    epochs = [line["epoch"] for line in lines]
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot(epochs, [line["train_loss"] for line in lines], label="training")
    axes.plot(epochs, [line["validation_loss"] for line in lines], label="validation")
    axes.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
