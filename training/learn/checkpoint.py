"""Checkpoints of a training run, one file each."""

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
from training.settings import CHECKPOINTS_KEPT

HASH_BYTES = 32  # SHA-256
LAYOUT = 2  # of a checkpoint; raise it when the parameters of the networks change
CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "onnxruntime")

Tree = TypeVar("Tree")


class Best(TypedDict):
    """The averaged weights with the lowest validation loss so far.

    The layers that count with products have a loss of their own: the answer to a photo alone does
    not depend on them.
    """

    epoch: float  # after how many epochs
    validation_loss: float
    products_loss: float
    network: dict[str, Any]


class Checkpoint(TypedDict):
    """The state that the next step depends on; random numbers follow from seed, epoch and step."""

    settings: dict[str, Any]
    machine: dict[str, Any]  # machine_details() where it was saved
    epoch: int  # epochs completed
    step: int  # steps taken in the next one
    losses: list[float]  # of the steps since the last evaluation
    network: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    best: Best
    history: list[dict[str, Any]]  # the lines of metrics.jsonl


def machine_details() -> dict[str, Any]:
    """Return what the exact weights depend on besides settings and data."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """Return the model name; equal instruction sets do not imply the same order of additions."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class CheckpointWriter:
    """Saves checkpoints in a thread; training only waits until they are copied in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1)
        self._saving: Future[Path] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Start saving `checkpoint`. Raises OSError if the previous one could not be saved."""
        self.wait()
        self._saving = self._pool.submit(save_checkpoint, self._folder, copy_tensors(checkpoint))

    @property
    def busy(self) -> bool:
        return self._saving is not None and not self._saving.done()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises OSError if it could not be saved."""
        if self._saving:
            self._saving.result()
            self._saving = None


def copy_tensors(tree: Tree) -> Tree:
    """Copy the tensors, lists and dicts of `tree` to the CPU."""
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
    """Save `tree` to a file that is complete or absent.

    With `checked`, the SHA-256 of the content precedes it (32 bytes). Raises OSError, which names
    the file, if the disk is full.
    """
    # To memory first, as torch.save reports a full disk with a misleading error.
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
    """Return the message of a command that cannot write or read its files."""
    at = f" at {error.filename}" if error.filename else ""
    return (
        f"error: {error.strerror or error}{at}: fix this, then run the same command again to resume"
    )


def read_checked(file: Path) -> dict[str, Any]:
    """Read a file that write_tensors saved with `checked`. Raises ValueError if it is damaged.

    PyTorch reads many damaged files without an error, but with wrong numbers.
    """
    content = file.read_bytes()
    if hashlib.sha256(content[HASH_BYTES:]).digest() != content[:HASH_BYTES]:
        raise ValueError("the checksum does not match")
    tree: dict[str, Any] = torch.load(
        io.BytesIO(content[HASH_BYTES:]), map_location="cpu", weights_only=True
    )
    return tree


def checkpoints_folder(
    checkpoints: Path, settings: Mapping[str, Any], *, inputs: str, processes: int
) -> Path:
    """Return the folder in `checkpoints` for a run; each combination of arguments has its own.

    `inputs` identifies the data and the pretrained weights. The number of `processes` determines
    the steps of an epoch.
    """
    identity = json.dumps([dict(settings), inputs, processes], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = checkpoints / f"checkpoints-{key}"
    others = [other.name for other in checkpoints.glob("checkpoints-*") if other != folder]
    if others and not folder.exists():
        print(
            f"{checkpoints} only has checkpoints of other settings, data or numbers of processes "
            f"({', '.join(sorted(others))}): this run starts from scratch",
            file=sys.stderr,
        )
    return folder


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint-<epoch>-<step>.pt` and remove all but the newest CHECKPOINTS_KEPT.

    Also removes checkpoints of later steps: they are damaged, or the run would have resumed there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"checkpoint-{checkpoint['epoch']:05d}-{checkpoint['step']:07d}.pt"
    write_tensors(file, {**checkpoint, "layout": LAYOUT}, checked=True)
    earlier = sorted(other for other in folder.glob("checkpoint-*.pt") if other <= file)
    for other in folder.glob("checkpoint-*.pt"):
        if other not in earlier[-CHECKPOINTS_KEPT:]:
            other.unlink()
    return file


def load_checkpoint(folder: Path, settings: dict[str, Any]) -> Checkpoint | None:
    """Load the newest undamaged checkpoint with these settings; None if there is none."""
    for file in sorted(folder.glob("checkpoint-*.pt"), reverse=True):
        try:
            tree = read_checked(file)
            fits = tree.pop("layout", None) == LAYOUT and tree["settings"] == settings
        except Exception as error:  # torch.load raises nearly any type for damaged files
            print(f"{file.name} is damaged, trying an older one ({error!r:.80})", file=sys.stderr)
            continue
        if fits:
            _warn_of_other_machine(tree["machine"])
            return cast(Checkpoint, tree)
        print(f"{file.name} has other settings or layers and is not used", file=sys.stderr)
    return None


def _warn_of_other_machine(saved_on: dict[str, Any]) -> None:
    here = machine_details()
    differences = [
        f"{name} {saved_on.get(name)}, here {here[name]}"
        for name in here
        if here[name] != saved_on.get(name)
    ]
    if differences:
        print(
            f"the checkpoint is from another machine ({'; '.join(differences)}): the final weights "
            "will be as good, but not bit-for-bit the same",
            file=sys.stderr,
        )
