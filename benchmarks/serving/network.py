"""ResNet50 with five classes as torchvision has it. TorchServe reads this file by itself."""

from torchvision.models.resnet import Bottleneck, ResNet

CLASSES = 5


class ResNet50(ResNet):  # type: ignore[misc]
    """Pixels, normalised, float32 [N, 3, 224, 224] → logits, float32 [N, 5]."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=CLASSES)
