"""The network: a pretrained backbone with a new head, and its export to ONNX."""

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.learn.products import ProductsHead
from training.settings import ARCHITECTURES

STANDARDISE_BLOCK = 512  # features converted to float32 at a time, to save memory


class WeightsError(ValueError):
    """The weights do not fit the architecture; the message is one line."""


class Backbone(nn.Module):
    """Map RGB pixels to features.

    Input: [N, size, size, 3], uint8 or float32, 0–255. Output: float32 [N, features], the mean of
    each channel of the last feature map. With `all_stages`, the output is the mean and standard
    deviation of each channel of every stage: early stages of a frozen network respond to edges and
    textures, which increase with the number of items.
    """

    network: Any  # a timm model, which has methods that nn.Module lacks
    mean: Tensor
    std: Tensor

    def __init__(self, arch: str, *, all_stages: bool) -> None:
        super().__init__()
        architecture = ARCHITECTURES[arch]
        self.network = timm.create_model(architecture.timm_name, pretrained=False, num_classes=0)
        self.all_stages = all_stages
        self.dtype = torch.float32  # of the weights
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        normalised = normalised.to(self.dtype)
        if not self.all_stages:
            features: Tensor = self.network(normalised)
            return features.float()
        final, stages = self.network.forward_intermediates(normalised)
        maps = stages if final is stages[-1] else [*stages, final]
        return torch.cat([values for each in maps for values in self._mean_and_spread(each)], dim=1)

    @staticmethod
    def _mean_and_spread(feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of each channel of [N, C, H, W], float32 [N, C].

        E[x²] − E[x]² needs one pass over memory less than averaging squared differences.
        """
        values = feature_map.float()
        mean = values.mean((2, 3))
        return mean, ((values * values).mean((2, 3)) - mean * mean).clamp_min(0).sqrt()

    @torch.no_grad()
    def width(self) -> int:
        """Return the number of features."""
        was_training = self.training
        features = self.eval()(torch.zeros(1, 64, 64, 3))
        self.train(was_training)
        return int(features.shape[1])


class Head(nn.Module):
    """Map features, float32 [N, features], to logits, float32 [N, classes].

    With the products of the records, returns the logits of the photo alone, and those of photo and
    products: [N, 2, classes].

    Features are standardised with the statistics of the training set (`standardise`), so that one
    learning rate suits every backbone. With `hidden=0` the head is linear.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        within = [nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU()] if hidden else []
        self.layers = nn.Sequential(
            *within, nn.Dropout(dropout), nn.Linear(hidden or features, classes)
        )
        self.with_products = ProductsHead(features, classes, regularised=dropout > 0)

    def standardise(self, features: Tensor) -> None:
        """Store the mean and standard deviation of `features` [N, features]."""
        blocks = features.split(STANDARDISE_BLOCK, dim=1)
        stds, means = zip(*(torch.std_mean(block.float(), 0) for block in blocks), strict=True)
        self.mean.copy_(torch.cat(means))
        self.std.copy_(torch.cat(stds).clamp_min(1e-3))

    def forward(self, features: Tensor, products: Tensor | None = None) -> Tensor:
        standardised = (features - self.mean) / self.std
        logits: Tensor = self.layers(standardised)
        if products is None:
            return logits
        return torch.stack([logits, self.with_products(standardised, logits, products)], dim=1)


class Network(nn.Module):
    """Map RGB pixels, and the products of the records if given, to the logits of the head.

    Input: [N, size, size, 3], uint8 or float32, 0–255. With `frozen_batch_norm`, the BatchNorm
    layers of the backbone stay in eval mode during training.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, *, frozen_batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen_batch_norm = frozen_batch_norm

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, pixels: Tensor, products: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.backbone(pixels), products)
        return logits


class Ensemble(nn.Module):
    """Ensemble of networks or heads (Lakshminarayanan et al. 2017).

    In eval mode, returns the mean of the members' logits, [N, …]. In training mode, returns the
    logits of each member, one after the other, [members × N, …].
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> Tensor:
        logits = [member(*inputs) for member in self.members]
        return torch.cat(logits) if self.training else torch.stack(logits).mean(0)


def make_ensemble(members: Sequence[nn.Module]) -> nn.Module:
    """Return an Ensemble of `members`, or the member itself if there is only one."""
    return members[0] if len(members) == 1 else Ensemble(members)


class Counter(nn.Module):
    """The model that is served: pixels, uint8 [N, size, size, 3], to probabilities.

    Returns float32 [N, classes]. `temperature` divides the logits to calibrate the probabilities.
    With `mirror`, the logits of a photo and of its mirror image are averaged; both go through the
    network as one batch, so that the exported graph contains each layer once.
    """

    def __init__(
        self, network: nn.Module, temperature: float = 1.0, *, mirror: bool = False
    ) -> None:
        super().__init__()
        self.network, self.temperature, self.mirror = network, temperature, mirror

    def forward(self, pixels: Tensor) -> Tensor:
        if self.mirror:
            both = self.network(torch.cat([pixels, pixels.flip(2)]))
            logits = both.reshape(2, -1, both.shape[1]).mean(0)
        else:
            logits = self.network(pixels)
        return torch.softmax(logits / self.temperature, dim=1)


def load_backbone(arch: str, weights: Path, *, all_stages: bool) -> Backbone:
    """Return the backbone of `arch` in eval mode, with the pretrained `weights`.

    The file holds a state dict of timm, or it is weights.pth of an earlier run; of an ensemble, the
    backbone of the first member is loaded. Raises WeightsError if the file is missing, is damaged
    or belongs to another architecture.
    """
    backbone = Backbone(arch, all_stages=all_stages)
    state = _read_weights(arch, weights)
    for prefix in ("members.0.", "backbone.network."):
        if any(name.startswith(prefix) for name in state):
            state = {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
    wanted = backbone.network.state_dict().keys()
    try:
        backbone.network.load_state_dict({k: v for k, v in state.items() if k in wanted})
    except RuntimeError as error:
        raise WeightsError(f"{weights} does not contain weights of {arch}") from error
    return backbone.eval()


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each BatchNorm into the convolution before it, in the order in which timm defines them.

    The network must be in eval mode. Activations that timm keeps inside a BatchNorm remain.
    """
    convolution = ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution = name
        elif isinstance(child, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(getattr(module, convolution), child)
            setattr(module, convolution, fused)
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            fold_batch_norm(child)


def load_matching(network: nn.Module, arch: str, weights: Path) -> bool:
    """Load all of weights.pth of an earlier run, including heads, if it fits `network`.

    The layers that count with products may be missing. Returns False and leaves `network` unchanged
    if the file has another head, another number of members, or only a backbone. Raises WeightsError
    like load_backbone.
    """
    loaded, own = _read_weights(arch, weights), network.state_dict()
    needed = {name for name in own if ".with_products." not in name}
    fits = needed <= loaded.keys() <= own.keys()
    if not fits or any(loaded[name].shape != own[name].shape for name in loaded):
        return False
    network.load_state_dict(loaded, strict=False)
    return True


def _read_weights(arch: str, file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {str(name): tensor for name, tensor in state.items()}
    except FileNotFoundError as error:
        raise WeightsError(
            f"no weights at {file}: run `python -m data_prep weights --arch {arch}`"
        ) from error
    except Exception as error:  # torch.load raises nearly any type for damaged files
        raise WeightsError(f"{file} is not a weights file, or it is damaged") from error


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Exclude depthwise convolutions from autocast.

    On CPUs, many of their gradients take 5 to 20 times as long in bfloat16 as in float32.
    """

    def outside_autocast(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def in_float32(inputs: Tensor) -> Tensor:
            with torch.autocast(inputs.device.type, enabled=False):
                return forward(inputs.float())

        return in_float32

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = outside_autocast(module.forward)  # type: ignore[method-assign, assignment]


def export_onnx(module: nn.Module, example: Tensor, file: Path, *, names: tuple[str, str]) -> None:
    """Export `module` to one ONNX file with a dynamic batch size.

    `names` are those of its input and output. Folding BatchNorm and avoiding in-place activations
    beforehand gives the same graph, but makes the export much faster.
    """
    traced = copy.deepcopy(module).eval()
    for layer in traced.modules():
        # keep_depthwise_in_float32 sets it, and it would call the original layer.
        vars(layer).pop("forward", None)
        if getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[assignment]
    fold_batch_norm(traced)
    torch.onnx.export(
        traced,
        (example,),
        file,
        input_names=[names[0]],
        output_names=[names[1]],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
