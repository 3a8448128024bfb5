"""One ResNet50, as it is before training, in the form that each server takes it."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.serving.network import CLASSES, ResNet50
from serving.container.artifact import NETWORKS
from serving.container.preprocess import to_pixels
from training.export.int8 import BATCH, CALIBRATED_ON
from training.learn.model import Backbone, Counter, Head, Network, export_onnx
from training.learn.quantize import quantize_onnx

SIZE = 224


@dataclass(frozen=True)
class Models:
    """Files of the same weights."""

    folder: Path  # ours: model.onnx, model-int8.onnx, model.json
    weights: Path  # a state dict of ResNet50


def make_models(folder: Path, photos: Sequence[bytes]) -> Models:
    """Draw weights, export them, quantise them on the first of `photos`."""
    torch.manual_seed(0)
    network = ResNet50()
    weights = folder / "resnet50.pth"
    torch.save(network.state_dict(), weights)
    ours = folder / "model"
    ours.mkdir()
    export_ours(network, ours / NETWORKS["float32"])
    pixels = np.stack([to_pixels(photo, SIZE) for photo in photos[:CALIBRATED_ON]])
    batches = np.split(pixels, range(BATCH, len(pixels), BATCH))
    quantize_onnx(ours / NETWORKS["float32"], ours / NETWORKS["int8"], batches)
    labels = [str(count) for count in range(1, CLASSES + 1)]
    # Served as if it were as good: random weights have no accuracy to lose.
    description = {"size": SIZE, "labels": labels, "int8": {"served": True}}
    (ours / "model.json").write_text(json.dumps(description))
    return Models(ours, weights)


def export_ours(network: ResNet50, file: Path) -> None:
    """The same weights as training.export.model_folder writes them."""
    state = network.state_dict()
    backbone = Backbone("resnet50", all_stages=False)
    names = backbone.network.state_dict().keys()
    backbone.network.load_state_dict({name: state[name] for name in names})
    head = Head(backbone.width(), CLASSES, hidden=0, dropout=0)
    head.layers[-1].load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
    counter = Counter(Network(backbone, head)).eval()
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    export_onnx(counter, example, file, names=("pixels", "probabilities"))


def pack_torchserve(archiver: Path, weights: Path, store: Path) -> None:
    """Write m.mar for TorchServe's own image classifier."""
    store.mkdir()
    model_file = Path(__file__).with_name("network.py")
    subprocess.run(
        [
            *(str(archiver), "--model-name", "m", "--version", "1.0", "--export-path", str(store)),
            *("--model-file", str(model_file), "--serialized-file", str(weights)),
            *("--handler", "image_classifier"),
        ],
        check=True,
    )
