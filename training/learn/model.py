"""A pretrained backbone with a new head, and what both look like as one ONNX graph."""

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.settings import ARCHITECTURES

STANDARDISED_AT_ONCE = 512  # features, which then take four bytes a number


class WeightsError(ValueError):
    """The weights do not fit the architecture; the message is one line."""


class Backbone(nn.Module):
    """RGB pixels 0–255 [N, size, size, 3], uint8 or float32 → features, float32 [N, features].

    Features are the mean of each channel of the last feature map, which is what training every
    layer shapes. With `all_stages` they are the mean and the spread of each channel of every
    stage: where the layers stay as they are, the early stages know edges and textures, of which
    there are more where there are more items.
    """

    network: Any  # timm's models have more than the methods of nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, arch: str, *, all_stages: bool) -> None:
        super().__init__()
        architecture = ARCHITECTURES[arch]
        self.network = timm.create_model(architecture.timm_name, pretrained=False, num_classes=0)
        self.all_stages = all_stages
        self.dtype = torch.float32  # of the network's weights
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
        """Of each channel, float32 [N, C] each, of [N, C, H, W]. By squares: one pass less over
        memory than by differences, which counts as much as some layers."""
        values = feature_map.float()
        mean = values.mean((2, 3))
        return mean, ((values * values).mean((2, 3)) - mean * mean).clamp_min(0).sqrt()

    @torch.no_grad()
    def width(self) -> int:
        """How many features there are."""
        was_training = self.training
        features = self.eval()(torch.zeros(1, 64, 64, 3))
        self.train(was_training)
        return int(features.shape[1])


class Head(nn.Module):
    """Features, float32 [N, features] → logits, float32 [N, classes].

    `standardise` takes the mean and spread of the training features, so that one learning
    rate fits every backbone. Without `hidden` units it is linear.
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

    def standardise(self, features: Tensor) -> None:
        """Take over the mean and standard deviation of `features` [N, features]."""
        blocks = features.split(STANDARDISED_AT_ONCE, dim=1)
        stds, means = zip(*(torch.std_mean(block.float(), 0) for block in blocks), strict=True)
        self.mean.copy_(torch.cat(means))
        self.std.copy_(torch.cat(stds).clamp_min(1e-3))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers((features - self.mean) / self.std)
        return logits


class Network(nn.Module):
    """RGB pixels 0–255 [N, size, size, 3], uint8 or float32 → logits, float32 [N, classes].

    With `frozen_batch_norm` the statistics of the backbone's BatchNorm stay as they are in
    training too, and an answer depends on its own photo alone.
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

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(pixels))
        return logits


class Members(nn.Module):
    """Networks or heads that count together (Lakshminarayanan et al. 2017).

    They answer the mean of their logits, [N, classes]. In training each answers for itself: all
    N photos of the first, then of the second, [members × N, classes].
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = [member(inputs) for member in self.members]
        return torch.cat(logits) if self.training else torch.stack(logits).mean(0)


def together(members: Sequence[nn.Module]) -> nn.Module:
    """Members of these, or the only one."""
    return members[0] if len(members) == 1 else Members(members)


class Counter(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → probabilities, float32 [N, classes]: what is served.

    `temperature` divides the logits, so that the probabilities say how often the count is right.
    With `mirror` the logits are the mean of those of the photo and of its mirror image, which the
    network sees as one batch: each of its layers is in the graph once.
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
    """The backbone of `arch` in eval mode, with the pretrained `weights`.

    They are a state dict of timm's, or what an earlier run left as weights.pth; of several
    members the first one's.
    Raises WeightsError when the file is missing, damaged, or of another architecture.
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
        raise WeightsError(f"the weights in {weights} are not those of {arch}") from error
    return backbone.eval()


def fold_batch_norm(module: nn.Module) -> None:
    """Put each BatchNorm of a network in eval mode into the convolution before it, as timm orders
    them. The activation that timm keeps in some of them stays."""
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


def take_over(network: nn.Module, arch: str, weights: Path) -> bool:
    """Give `network` what an earlier run left as weights.pth, head and members included.

    False, with nothing changed, where it holds another head, other members, or a backbone alone.
    Raises WeightsError as load_backbone does.
    """
    found, own = _read_weights(arch, weights), network.state_dict()
    if found.keys() != own.keys() or any(found[k].shape != own[k].shape for k in own):
        return False
    network.load_state_dict(found)
    return True


def _read_weights(arch: str, file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {str(name): tensor for name, tensor in state.items()}
    except FileNotFoundError as error:
        raise WeightsError(
            f"no weights at {file}: run `python -m data_prep weights --arch {arch}`"
        ) from error
    except Exception as error:  # for damaged files torch.load raises nearly anything
        raise WeightsError(f"{file} is not a file of weights, or is damaged") from error


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Take the depthwise convolutions out of autocast.

    On CPUs many of their gradients take five to twenty times as long in bfloat16 as in float32.
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
    """Write `module` as one ONNX file with a dynamic batch; `names` are its input and output.

    BatchNorm is folded beforehand, and no activation works in place: the exporter comes to the
    same graph either way, but traces each of the two at length first.
    """
    traced = copy.deepcopy(module).eval()
    for layer in traced.modules():
        vars(layer).pop("forward", None)  # of keep_depthwise_in_float32: it calls the original
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
