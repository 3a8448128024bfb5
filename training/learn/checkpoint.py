"""Snapshots of a training run: one file each, complete or absent, the newest that is whole wins."""

import hashlib
import io
import json
import platform
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import torch

from common.files import replacing
from training.settings import SNAPSHOTS_KEPT

CHECK_BYTES = 32  # of a SHA-256
CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "onnxruntime")

Tree = TypeVar("Tree")


class Best(TypedDict):
    """The averaged weights with the lowest loss on validation so far."""

    epoch: float  # epochs before it was measured
    validation_loss: float
    network: dict[str, Any]


class Snapshot(TypedDict):
    """All that the next step depends on. Randomness is a function of seed, epoch and step."""

    settings: dict[str, Any]
    machine: dict[str, Any]  # that took it
    epoch: int  # epochs finished
    step: int  # steps taken after them
    losses: list[float]  # of the steps since the last measurement
    network: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    best: Best
    history: list[dict[str, Any]]  # the lines of metrics.jsonl


def machine() -> dict[str, Any]:
    """What the last bits of the weights depend on, besides settings and data."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """Its model: two with the same instructions may still compute in another order."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class SnapshotWriter:
    """Saves snapshots in a thread of its own: training waits for a copy in memory only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1)
        self._saving: Future[Path] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Begin to save. Raises OSError when the one before could not be saved."""
        self.wait()
        self._saving = self._pool.submit(save_snapshot, self._folder, copy_tensors(snapshot))

    @property
    def busy(self) -> bool:
        return self._saving is not None and not self._saving.done()

    def wait(self) -> None:
        """Return when the last one is on disk. Raises OSError when it could not be saved."""
        if self._saving:
            self._saving.result()
            self._saving = None


def copy_tensors(tree: Tree) -> Tree:
    """`tree` with its tensors, lists and dicts copied, on the CPU."""
    copied: Any = tree
    if isinstance(tree, torch.Tensor):
        copied = tree.detach().to("cpu", copy=True)
    elif isinstance(tree, dict):
        copied = {key: copy_tensors(value) for key, value in tree.items()}
    elif isinstance(tree, list):
        copied = [copy_tensors(value) for value in tree]
    result: Tree = copied
    return result


def write_tensors(file: Path, tree: Mapping[str, Any], *, checked: bool = False) -> None:
    """Save `tree` as one file, complete or absent; if `checked`, behind its SHA-256, 32 bytes.

    Raises OSError, which names the file, when there is no room.
    """
    # To memory first: of a full disk PyTorch says that a position was not expected.
    content = io.BytesIO()
    torch.save(tree, content)
    try:
        with replacing(file) as partial, partial.open("wb") as stream:
            if checked:
                stream.write(hashlib.sha256(content.getbuffer()).digest())
            stream.write(content.getbuffer())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


def disk_error_line(error: OSError) -> str:
    """What a command says when it can no longer write, or read, its files."""
    at = f" at {error.filename}" if error.filename else ""
    return (
        f"error: {error.strerror or error}{at}: mend that, and the same command goes on with what "
        "was saved"
    )


def read_checked(file: Path) -> dict[str, Any]:
    """What write_tensors saved as `checked`. Raises ValueError when a bit of it has changed.

    PyTorch itself reads many damaged files without an error, with other numbers in them.
    """
    content = file.read_bytes()
    if hashlib.sha256(content[CHECK_BYTES:]).digest() != content[:CHECK_BYTES]:
        raise ValueError("not what was written")
    tree: dict[str, Any] = torch.load(
        io.BytesIO(content[CHECK_BYTES:]), map_location="cpu", weights_only=True
    )
    return tree


def snapshots_folder(
    checkpoints: Path, settings: Mapping[str, Any], *, inputs: str, processes: int
) -> Path:
    """Where the snapshots of a run are: those of another run, be it of one changed flag, stay
    where they are.

    `inputs` stands for data and pretrained weights. The position in an epoch is counted in the
    steps of so many `processes`.
    """
    identity = json.dumps([dict(settings), inputs, processes], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = checkpoints / f"snapshots-{key}"
    others = [other.name for other in checkpoints.glob("snapshots-*") if other != folder]
    if others and not folder.exists():
        print(
            f"{checkpoints} has snapshots of other settings, data or processes "
            f"({', '.join(sorted(others))}): this run starts from scratch",
            file=sys.stderr,
        )
    return folder


def save_snapshot(folder: Path, snapshot: Snapshot) -> Path:
    """Write `snapshot-<epoch>-<step>.pt` and remove all but the newest SNAPSHOTS_KEPT.

    One of a later step goes as well: it is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"snapshot-{snapshot['epoch']:05d}-{snapshot['step']:07d}.pt"
    write_tensors(file, snapshot, checked=True)
    earlier = sorted(other for other in folder.glob("snapshot-*.pt") if other <= file)
    for other in folder.glob("snapshot-*.pt"):
        if other not in earlier[-SNAPSHOTS_KEPT:]:
            other.unlink()
    return file


def load_snapshot(folder: Path, settings: dict[str, Any]) -> Snapshot | None:
    """The newest whole snapshot taken with these settings, or None: start from scratch."""
    for file in sorted(folder.glob("snapshot-*.pt"), reverse=True):
        try:
            snapshot = cast(Snapshot, read_checked(file))
            same_settings = snapshot["settings"] == settings
        except Exception as error:  # for files of another version torch.load raises nearly anything
            print(f"{file.name} is damaged, trying an older one ({error!r:.80})", file=sys.stderr)
            continue
        if same_settings:
            _compare_machines(snapshot["machine"])
            return snapshot
        print(f"{file.name} was taken with other settings, not used", file=sys.stderr)
    return None


def _compare_machines(taken_on: dict[str, Any]) -> None:
    here = machine()
    others = [
        f"{name} {taken_on.get(name)}, here {here[name]}"
        for name in here
        if here[name] != taken_on.get(name)
    ]
    if others:
        print(
            f"the snapshot is of another machine ({'; '.join(others)}): the weights will be as "
            "good, but not the same to the last bit",
            file=sys.stderr,
        )
