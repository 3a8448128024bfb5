"""Choices that several packages offer to the user."""

from typing import Literal

Arch = Literal["resnet50", "efficientnet_lite0", "efficientnet_lite2"]  # the pretrained backbone
Mode = Literal["head", "finetune"]  # which layers are trained
Purchase = Literal["spot", "on_demand"]  # how a machine is bought
