"""A model folder that counts grey: small enough for tests, made without a training framework."""

import io
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

LABELS = ["1", "2", "3", "4", "5"]
SIZE = 24


def write_tiny_model(
    folder: Path, labels: list[str] = LABELS, size: int = SIZE, scale: float = 1.0
) -> Path:
    """Write model.onnx, model.json and metrics.json; a grey of `k / 6 * 255` counts as scale · k.

    The network: mean over all pixels → one linear layer → softmax.
    """
    counts = np.array([int(label) for label in labels], np.float32)
    # softmax(-(6·mean - k)²·4), without the part of the square that all k share
    weights = {
        "scale": np.float32(scale * 6 / 255),
        "slope": (8 * counts)[np.newaxis],
        "bias": -4 * counts**2,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["values", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "scale"], ["grey"]),
            helper.make_node("Unsqueeze", ["grey", "last"], ["column"]),
            helper.make_node("Gemm", ["column", "slope", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(labels)])],
        [
            *(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()),
            numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
            numpy_helper.from_array(np.array([1]), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    description = {"arch": "tiny", "size": size, "labels": labels, "run_id": "test"}
    (folder / "model.json").write_text(json.dumps(description))
    (folder / "metrics.json").write_text(json.dumps({"test": {"photos": 0}}))
    return folder


def grey_photo(count: int, form: str = "JPEG") -> bytes:
    """A photo that the tiny model counts as `count`."""
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (round(count / 6 * 255),) * 3).save(buffer, form)
    return buffer.getvalue()
