"""A pretrained backbone with a new head, and what both look like as one ONNX graph."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from training.settings import ARCHITECTURES


class WeightsError(ValueError):
    """The weights do not fit the architecture; the message is one line."""


class Backbone(nn.Module):
    """RGB pixels, uint8 [N, size, size, 3] → features, float32 [N, features].

    Features are the mean and the spread of each channel of every stage's feature map: the early
    stages know edges and textures, of which there are more where there are more items.
    """

    network: Any  # timm's models have more than the methods of nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, arch: str) -> None:
        super().__init__()
        architecture = ARCHITECTURES[arch]
        self.network = timm.create_model(architecture.timm_name, pretrained=False, num_classes=0)
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        final, stages = self.network.forward_intermediates(normalised)
        maps = stages if final is stages[-1] else [*stages, final]
        pixels_last = [feature_map.flatten(2) for feature_map in maps]
        statistics = [(m.mean(2), m.std(2, correction=0)) for m in pixels_last]
        return torch.cat([values for pair in statistics for values in pair], dim=1)


class Head(nn.Module):
    """Features, float32 [N, features] → logits, float32 [N, classes].

    `standardise` takes the mean and spread of the training features, so that one learning
    rate fits every backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def standardise(self, features: Tensor) -> None:
        """Take over the mean and standard deviation of `features` [N, features]."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(1e-3))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers((features - self.mean) / self.std)
        return logits


class Counter(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → probabilities, float32 [N, classes]: what is served."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.softmax(self.head(self.backbone(pixels)), dim=1)


def load_backbone(arch: str, weights: Path) -> Backbone:
    """The backbone of `arch` in eval mode, with the pretrained `weights` (a state dict of timm's).

    Raises WeightsError when the file is missing, damaged, or of another architecture.
    """
    backbone = Backbone(arch)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        wanted = backbone.network.state_dict().keys()
        found = {name: tensor for name, tensor in state.items() if name in wanted}
    except FileNotFoundError as error:
        raise WeightsError(
            f"no weights at {weights}: run `python -m data_prep weights --arch {arch}`"
        ) from error
    except Exception as error:  # for damaged files torch.load raises nearly anything
        raise WeightsError(f"{weights} is not a file of weights, or is damaged") from error
    try:
        backbone.network.load_state_dict(found)
    except RuntimeError as error:
        raise WeightsError(f"the weights in {weights} are not those of {arch}") from error
    return backbone.eval()


def export_onnx(module: nn.Module, example: Tensor, file: Path, *, names: tuple[str, str]) -> None:
    """Write `module` as one ONNX file with a dynamic batch; `names` are its input and output."""
    torch.onnx.export(
        module.eval(),
        (example,),
        file,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
