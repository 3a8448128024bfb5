"""The products of a bin's record as a tensor, and the part of the head that counts with them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.dataset import PhotoIndex

SLOTS = 8  # products of a record; of a bin with more, the record is not used
MEASURES = ("length", "width", "height", "weight")  # inches and pounds; see data_prep/products.py
UNKNOWN, ABSENT = 0.0, -1.0  # a measure that the record lacks, a slot without a product

SMALLEST = 0.01  # inches or pounds; smaller measures count as this
WIDTH = 64  # units of each layer
PHOTO_UNITS = 16  # of the photo's features beside the products; 64 and 256 were worse
PHOTO_DROPOUT, DROPOUT = 0.8, 0.3
NOISE = 0.2  # standard deviation of the logarithms in training, since every product is seen often


def product_slots(photos: PhotoIndex) -> Tensor:
    """Return the products of each photo's record, float32 [photos, SLOTS, MEASURES].

    With more than SLOTS products, or without any, all slots are ABSENT.

    Quantities are left out: their sum is the count.
    """
    slots = np.full((len(photos), SLOTS, len(MEASURES)), ABSENT, np.float32)
    products_of = photos.products
    for row in np.flatnonzero(has_products(photos)):
        for slot, product in enumerate(products_of[row]):
            slots[row, slot] = [product.get(name, UNKNOWN) for name in MEASURES]
    return torch.from_numpy(slots)


def has_products(photos: PhotoIndex) -> NDArray[np.bool_]:
    """Return whether the record of each photo names products that are used, bool [photos]."""
    return np.array([0 < len(products) <= SLOTS for products in photos.products], np.bool_)


class ProductsHead(nn.Module):
    """Map features, float32 [N, features], photo logits [N, classes] and products to logits.

    Products are float32 [N, SLOTS, MEASURES], in any order; without any, the logits are those of
    the photo, and so they are before any training. The encodings of products are summed (Zaheer et
    al. 2017, "Deep Sets"). Neither the features nor the photo's logits are trained by it, so that
    the answer to a photo alone stays what it is. With `regularised=False`, there is neither dropout
    nor noise in training.
    """

    def __init__(self, features: int, classes: int, *, regularised: bool) -> None:
        super().__init__()
        self.noise = NOISE * regularised
        self.photo = nn.Sequential(
            nn.Dropout(PHOTO_DROPOUT * regularised), nn.Linear(features, PHOTO_UNITS), nn.ReLU()
        )
        self.product = nn.Sequential(
            nn.Linear(2 * len(MEASURES) + 2, WIDTH),
            nn.ReLU(),
            nn.Dropout(DROPOUT * regularised),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
        )
        self.layers = nn.Sequential(
            nn.Linear(WIDTH + SLOTS + 1 + PHOTO_UNITS + classes, WIDTH),
            nn.ReLU(),
            nn.Dropout(DROPOUT * regularised),
            nn.Linear(WIDTH, classes),
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, logits: Tensor, products: Tensor) -> Tensor:
        """Return logits, float32 [N, classes]."""
        present = (products != ABSENT).any(2)  # [N, SLOTS]
        encoded = self.product(self._describe(products)) * present.unsqueeze(2)
        number = present.sum(1, keepdim=True) == torch.arange(SLOTS + 1, device=products.device)
        alone = logits.detach().float()
        inputs = [
            encoded.sum(1),
            number.float(),
            self.photo(features.detach()),
            alone.log_softmax(1),
        ]
        correction: Tensor = self.layers(torch.cat(inputs, dim=1))
        return torch.where(present.any(1, keepdim=True), alone + correction, alone)

    def _describe(self, products: Tensor) -> Tensor:
        """Return logarithms of sides, longest first, weight, volume and density; what is known."""
        sides, weight = products[..., :3].sort(dim=2, descending=True).values, products[..., 3:]
        measures = torch.cat([sides, weight], dim=2)
        known = (measures > UNKNOWN).float()
        logs = measures.clamp_min(SMALLEST).log() * known
        if self.training:
            logs = logs + self.noise * torch.randn_like(logs) * known
        volume = logs[..., :3].sum(2, keepdim=True)
        return torch.cat([logs, volume, logs[..., 3:] - volume, known], dim=2)
