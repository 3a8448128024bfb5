"""The model on disk: a folder, or a model.tar.gz of it.

    model.onnx          pixels → probabilities in float32, normalisation inside
    model-int8.onnx     the same with int8 convolutions, if training found it to be as accurate
    model.json          input size, labels, decision, and the origin of the model

Its metrics.json is not read here, and its code/ is for containers other than ours: this server
executes nothing of it.
"""

import gzip
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.container.decision import DECISIONS, Decision

Precision = Literal["float32", "int8"]
AnyPrecision = Literal["auto", "float32", "int8"]  # auto: int8 where it is exact
DESCRIPTION = "model.json"
NETWORKS: dict[Precision, str] = {"float32": "model.onnx", "int8": "model-int8.onnx"}
LARGEST_INPUT = 2048  # pixels a side; a larger "size" in model.json is a mistake
LARGEST_MODEL = 4 << 30  # bytes unpacked; a larger archive is no model and would fill the disk
CPU_INFO = Path("/proc/cpuinfo")


class ModelError(ValueError):
    """The model's files are missing or broken; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The part of model.json that serving needs."""

    size: int  # pixels a side of the network's input
    labels: tuple[str, ...]  # the count that each output stands for
    decision: Decision = "argmax"  # from the probabilities to a count
    has_int8: bool = False  # whether training found int8 to be as accurate
    digest: str = ""  # of model.json, which no two trainings share


@dataclass(frozen=True, kw_only=True)
class Model(Description):
    """A loaded network; safe to use from several threads at once."""

    session: onnxruntime.InferenceSession
    precision: Precision = "float32"  # of the convolutions

    @property
    def counts(self) -> list[int]:
        return [int(label) for label in self.labels]

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels [N, size, size, 3] → probabilities [N, classes]."""
        (answer,) = self.session.run(["probabilities"], {"pixels": pixels})
        return np.asarray(answer, dtype=np.float32)


def load_model(source: str | Path, *, threads: int = 0, precision: AnyPrecision = "auto") -> Model:
    """Load a model folder or a model.tar.gz and run a warm-up.

    `threads` is the number for one call; with 0, ONNX Runtime chooses. The `precision` auto is
    int8 if the model has it and the CPU multiplies it exactly. Raises ModelError.
    """
    path = Path(source)
    if path.is_dir():
        return _load_folder(path, threads, precision)
    if not path.is_file():
        raise ModelError(f"{path}: no such model folder or model.tar.gz")
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        _unpack(path, folder)
        if not Path(folder, DESCRIPTION).exists():
            for found in sorted(Path(folder).glob(f"*/{DESCRIPTION}")):
                inner = found.parent.name
                raise ModelError(
                    f"{path}: the files are in the folder {inner!r} and must be at the root: "
                    f"pack them with `tar -czf model.tar.gz -C {inner} .`"
                )
        try:
            return _load_folder(Path(folder), threads, precision)
        except ModelError as error:
            raise ModelError(str(error).replace(folder, str(path))) from error


def has_vnni() -> bool:
    """Whether this x86 CPU multiplies int8 fast and exactly (VNNI); False if that is unknown.

    Without VNNI, ONNX Runtime adds pairs of products in 16 bits, which saturate.
    """
    try:
        words = set(CPU_INFO.read_text().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_vnni", "avx_vnni"})


def _unpack(archive: Path, folder: str) -> None:
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members, total = [], 0
            for member in tar:  # read all headers before anything is written
                members.append(member)
                total += member.size
                if total > LARGEST_MODEL:
                    raise ModelError(f"{archive}: holds over {LARGEST_MODEL:,} bytes unpacked")
            tar.extractall(folder, members, filter="data")  # refuses paths outside the folder
            while stream.read(1 << 20):  # gzip checks its checksum only at the end
                pass
    except ModelError:
        raise
    except Exception as error:  # tarfile raises nearly anything for damaged headers
        raise ModelError(f"{archive}: not a usable model.tar.gz ({_one_line(error)})") from error


def _load_folder(folder: Path, threads: int, precision: AnyPrecision) -> Model:
    found = _read_description(folder / DESCRIPTION)
    chosen = _choose(folder, found, precision)
    network = folder / NETWORKS[chosen]
    if not network.is_file():
        raise ModelError(f"{network}: no such file; train a model first")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised; the log would repeat them
    try:
        session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        model = Model(**vars(found), session=session, precision=chosen)
        # Two photos, as the server relies on a free batch dimension.
        answer = model.probabilities(np.zeros((2, found.size, found.size, 3), np.uint8))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelError(f"{network}: not a usable network ({_one_line(error)})") from error
    if answer.shape != (2, len(found.labels)):
        raise ModelError(
            f"{network}: the network's output has the shape {list(answer.shape)} for two photos, "
            f"but model.json names {len(found.labels)} labels"
        )
    if not np.allclose(answer.sum(axis=1), 1, atol=1e-3):
        raise ModelError(f"{network}: the network's outputs are not probabilities")
    return model


def _choose(folder: Path, found: Description, precision: AnyPrecision) -> Precision:
    if precision == "int8" or (precision == "auto" and found.has_int8 and has_vnni()):
        if not found.has_int8:
            raise ModelError(f"{folder}: this model has no int8 variant, serve it in float32")
        return "int8"
    return "float32"


def _read_description(path: Path) -> Description:
    try:
        description: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; is this a model folder?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({_one_line(error)})") from error
    if not isinstance(description, Mapping):
        raise ModelError(f"{path}: holds no JSON object")
    size, labels = description.get("size"), description.get("labels")
    if type(size) is not int or not 1 <= size <= LARGEST_INPUT:
        raise ModelError(f'{path}: "size" is {size!r}, must be 1 to {LARGEST_INPUT} pixels')
    if (
        not isinstance(labels, list)
        or not labels
        or not all(isinstance(label, str) and _is_count(label) for label in labels)
        or len(set(labels)) < len(labels)
    ):
        raise ModelError(f'{path}: "labels" is {labels!r}, must be counts such as ["1", "2"]')
    decision = description.get("decision", "argmax")
    if decision not in DECISIONS:
        allowed = ", ".join(DECISIONS)
        raise ModelError(f'{path}: "decision" is {decision!r}, must be one of {allowed}')
    int8 = description.get("int8") or {}
    if not isinstance(int8, Mapping):
        raise ModelError(f'{path}: "int8" is {int8!r:.80}, must be an object')
    return Description(
        size=size,
        labels=tuple(labels),
        decision=decision,
        has_int8=int8.get("served") is True,
        digest=hashlib.sha256(path.read_bytes()).hexdigest()[:12],
    )


def _is_count(label: str) -> bool:
    return label.isascii() and label.isdecimal() and (label == "0" or label[0] != "0")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
