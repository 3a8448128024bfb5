"""Choices that several packages offer to the user."""

from typing import Literal

Arch = Literal["resnet50", "efficientnet_lite0", "efficientnet_lite2"]  # the pretrained backbone
Mode = Literal["head", "finetune"]  # which layers are trained
EPOCHS: dict[Mode, int] = {"head": 20, "finetune": 5}  # of a training that is told no others
Purchase = Literal["spot", "on_demand"]  # how a machine is bought
