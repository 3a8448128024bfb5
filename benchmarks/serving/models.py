"""The model that is served while it is measured."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from serving.container.artifact import NETWORKS
from serving.container.preprocess import to_pixels
from training.export.int8 import CALIBRATION_PHOTOS, EVAL_BATCH
from training.export.quantize import quantize_onnx
from training.learn.model import Backbone, Counter, Head, Network, export_onnx

SIZE, CLASSES = 224, 5
CALIBRATED_ON, BATCH = 64, 8  # photos


def make_model(folder: Path, photos: Sequence[bytes]) -> Path:
    """Write ResNet50 with random weights, in float32 and in int8, calibrated on `photos`.

    Returns the model folder. Random weights take as long as trained ones.
    """
    torch.manual_seed(0)
    backbone = Backbone("resnet50", all_stages=False)
    head = Head(backbone.width(), CLASSES, hidden=0, dropout=0)
    model = folder / "model"
    model.mkdir()
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    export_onnx(
        Counter(Network(backbone, head)).eval(),
        example,
        model / NETWORKS["float32"],
        names=("pixels", "probabilities"),
    )
    pixels = np.stack([to_pixels(photo, SIZE) for photo in photos[:CALIBRATION_PHOTOS]])
    batches = np.split(pixels, range(EVAL_BATCH, len(pixels), EVAL_BATCH))
    quantize_onnx(model / NETWORKS["float32"], model / NETWORKS["int8"], batches)
    labels = [str(count) for count in range(1, CLASSES + 1)]
    # Served as if int8 were as accurate: random weights have no accuracy to lose.
    description = {"size": SIZE, "labels": labels, "int8": {"served": True}}
    (model / "model.json").write_text(json.dumps(description))
    return model
