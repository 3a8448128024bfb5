"""Snapshots of a training run: one file each, complete or absent, the newest that is whole wins."""

import sys
from pathlib import Path
from typing import Any, TypedDict

import torch

KEPT = 2  # an older one is there if the newest turns out damaged


class Best(TypedDict):
    """The head after the epoch with the lowest loss on validation so far."""

    epoch: int
    validation_loss: float
    head: dict[str, Any]


class Snapshot(TypedDict):
    """All that the next epoch depends on. Randomness is a function of seed and epoch."""

    settings: dict[str, Any]
    epoch: int  # epochs finished
    head: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    best: Best
    history: list[dict[str, Any]]  # the lines of metrics.jsonl


def save_snapshot(folder: Path, snapshot: Snapshot) -> Path:
    """Write `snapshot-<epoch>.pt` and remove all but the newest KEPT.

    One of a later epoch goes as well: it is damaged, or was taken with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"snapshot-{snapshot['epoch']:05d}.pt"
    temporary = file.with_name(f".{file.name}.partial")
    torch.save(snapshot, temporary)
    temporary.replace(file)
    earlier = sorted(other for other in folder.glob("snapshot-*.pt") if other <= file)
    for other in folder.glob("snapshot-*.pt"):
        if other not in earlier[-KEPT:]:
            other.unlink()
    return file


def load_snapshot(folder: Path, settings: dict[str, Any]) -> Snapshot | None:
    """The newest whole snapshot taken with these settings, or None: start from scratch."""
    for file in sorted(folder.glob("snapshot-*.pt"), reverse=True):
        try:
            snapshot: Snapshot = torch.load(file, map_location="cpu", weights_only=True)
            same_settings = snapshot["settings"] == settings
        except Exception as error:  # for damaged files torch.load raises nearly anything
            print(f"{file.name} is damaged, trying an older one ({error!r:.80})", file=sys.stderr)
            continue
        if same_settings:
            return snapshot
        print(f"{file.name} was taken with other settings, not used", file=sys.stderr)
    return None
