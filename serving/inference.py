"""A photo → a count: SageMaker's four handlers, free of any server or framework.

    model_fn(folder) → model          once, at start
    input_fn(body, content_type) → photo
    predict_fn(photo, model) → prediction
    output_fn(prediction, accept) → body, content type

Only ONNX Runtime, Pillow and NumPy are needed. The folder is what training
exports: model.onnx (normalisation inside) and model.json (input size, labels).
"""

import gzip
import json
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.decision import DECISIONS, Decision, decide
from serving.preprocess import PhotoError, to_pixels

PHOTO_TYPES = ("image/jpeg", "image/png", "application/x-image")
ANSWER_TYPES = ("application/json", "text/csv")
LARGEST_INPUT = 2048  # pixels a side; a larger "size" in model.json is a slip, not a network


class RequestError(ValueError):
    """The client's request cannot be answered: an HTTP status and a message of one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ModelError(ValueError):
    """The model's files are missing or broken; the message is one line."""


@dataclass(frozen=True)
class Prediction:
    """What the model says about one photo."""

    count: int  # the number of items, as the model's decision makes it of the probabilities
    expected: float  # the mean of the distribution, in items
    probabilities: dict[str, float]  # label → probability; together 1


@dataclass(frozen=True)
class Model:
    """A loaded network; safe to use from several threads at once."""

    session: onnxruntime.InferenceSession
    size: int  # pixels a side of the network's input
    labels: tuple[str, ...]  # the count that each output stands for
    decision: Decision = "argmax"  # from the probabilities to a count

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels [N, size, size, 3] → probabilities [N, classes]."""
        (answer,) = self.session.run(["probabilities"], {"pixels": pixels})
        return np.asarray(answer, dtype=np.float32)


def model_fn(model_dir: str | Path, threads: int = 0) -> Model:
    """Load the model folder and let the network answer a warm-up.

    `threads` is what one photo may use; 0 lets ONNX Runtime choose. Raises ModelError.
    """
    folder = Path(model_dir)
    size, labels, decision = _read_description(folder / "model.json")
    network = folder / "model.onnx"
    if not network.is_file():
        raise ModelError(f"{network}: no such file; train a model first")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors come as exceptions; the log would repeat them
    try:
        session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        model = Model(session, size, labels, decision)
        # Two photos: the server relies on a free batch dimension.
        answer = model.probabilities(np.zeros((2, size, size, 3), np.uint8))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelError(f"{network}: not a usable network ({_one_line(error)})") from error
    if answer.shape != (2, len(labels)):
        raise ModelError(
            f"{network}: the network's output is {list(answer.shape)} for two photos, "
            f"but model.json names {len(labels)} labels"
        )
    if not np.allclose(answer.sum(axis=1), 1, atol=1e-3):
        raise ModelError(f"{network}: the network's outputs are not probabilities")
    return model


def load_model(source: str | Path, threads: int = 0) -> Model:
    """Like model_fn, from a model folder or a model.tar.gz. Raises ModelError."""
    path = Path(source)
    if path.is_dir():
        return model_fn(path, threads)
    if not path.is_file():
        raise ModelError(f"{path}: no such model folder or model.tar.gz")
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        try:
            with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                archive.extractall(folder, filter="data")  # refuses paths that climb out
                while stream.read(1 << 20):  # gzip compares its checksum at the very end
                    pass
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise ModelError(f"{path}: not a usable model.tar.gz ({_one_line(error)})") from error
        try:
            return model_fn(folder, threads)
        except ModelError as error:
            raise ModelError(str(error).replace(folder, str(path))) from error


def input_fn(body: bytes, content_type: str | None) -> bytes:
    """Check the request and return the photo's bytes. Raises RequestError (400, 415)."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type not in PHOTO_TYPES:
        raise RequestError(
            415, f"content type {media_type[:80]!r} is not read, send one of {_listed(PHOTO_TYPES)}"
        )
    if not body:
        raise RequestError(400, "the body is empty, send the bytes of a JPEG or PNG photo")
    return body


def predict_fn(photo: bytes, model: Model) -> Prediction:
    """Count the items in one photo (JPEG or PNG bytes). Raises RequestError (400)."""
    try:
        pixels = to_pixels(photo, model.size)
    except PhotoError as error:
        raise RequestError(400, str(error)) from error
    probabilities = model.probabilities(pixels[np.newaxis])
    counts = [int(label) for label in model.labels]
    by_label = dict(zip(model.labels, probabilities[0].tolist(), strict=True))
    return Prediction(
        count=int(decide(probabilities, counts, model.decision)[0]),
        expected=round(sum(int(label) * share for label, share in by_label.items()), 4),
        probabilities={label: round(share, 6) for label, share in by_label.items()},
    )


def output_fn(prediction: Prediction, accept: str | None) -> tuple[str, str]:
    """Write the answer as the client asked; returns the body and its content type.

    JSON, or one CSV row without header: count, expected, each label's probability.
    Raises RequestError (406).
    """
    content_type = _answer_type(accept)
    if content_type == "application/json":
        return json.dumps(asdict(prediction)), content_type
    row = [prediction.count, prediction.expected, *prediction.probabilities.values()]
    return ",".join(map(str, row)) + "\n", content_type


def _answer_type(accept: str | None) -> str:
    """The first of ANSWER_TYPES that suits an Accept header (RFC 9110, without q ranking)."""
    wanted = [part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    for pattern in wanted:
        for answer_type in ANSWER_TYPES:
            if pattern in (answer_type, answer_type.partition("/")[0] + "/*", "*/*"):
                return answer_type
    raise RequestError(
        406, f"accept {accept!r:.80} cannot be answered, accept one of {_listed(ANSWER_TYPES)}"
    )


def _read_description(path: Path) -> tuple[int, tuple[str, ...], Decision]:
    """The input size, the labels and the decision that model.json names."""
    try:
        description: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; is this a model folder?") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({_one_line(error)})") from error
    if not isinstance(description, Mapping):
        raise ModelError(f"{path}: holds no JSON object")
    size, labels = description.get("size"), description.get("labels")
    if type(size) is not int or not 1 <= size <= LARGEST_INPUT:
        raise ModelError(f'{path}: "size" is {size!r}, must be 1 to {LARGEST_INPUT} pixels')
    if (
        not isinstance(labels, list)
        or not labels
        or not all(isinstance(label, str) and label.isdecimal() for label in labels)
        or len(set(labels)) < len(labels)
    ):
        raise ModelError(f'{path}: "labels" is {labels!r}, must be counts such as ["1", "2"]')
    decision = description.get("decision", "argmax")
    if decision not in DECISIONS:
        raise ModelError(f'{path}: "decision" is {decision!r}, must be one of {_listed(DECISIONS)}')
    return size, tuple(labels), decision


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
