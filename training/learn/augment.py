"""What a photo may look like without changing how many items it shows.

Never a crop: it can cut an item off. What happens to a photo is a function of (seed, epoch, photo
id), so that neither the order of work nor an interruption changes it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

DEGREES = 5.0  # rotation, to either side
STRETCH = 0.06  # each axis, in or out; what leaves the frame is a margin of the bin
SHIFT = 0.03  # of the photo's side; as above
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.25, 0.25  # relative, up or down

FIELDS = 9  # random numbers a photo


def draw(ids: Sequence[str], *, seed: int, epoch: int) -> Tensor:
    """Random numbers for each photo, uniform in [-1, 1), float32 [N, FIELDS]."""
    rows = []
    for photo_id in ids:
        digest = hashlib.sha256(f"{seed}:{epoch}:{photo_id}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
        rows.append(generator.uniform(-1, 1, FIELDS))
    return torch.from_numpy(np.array(rows, np.float32))


def augment(pixels: Tensor, drawn: Tensor, size: int) -> Tensor:
    """Pixels, uint8 [N, any, any, 3], changed as draw() says → float32 [N, size, size, 3], 0–255.

    Moved and brought to `size` at once: each interpolation blurs what is to be counted.
    """
    photos = pixels.permute(0, 3, 1, 2).float()
    shape = [len(photos), 3, size, size]
    grid = functional.affine_grid(_geometry(drawn), shape, align_corners=False)
    moved = functional.grid_sample(photos, grid, padding_mode="reflection", align_corners=False)
    return _coloured(moved, drawn).permute(0, 2, 3, 1)


def _coloured(photos: Tensor, drawn: Tensor) -> Tensor:
    """Brightness, contrast and saturation at once: a matrix on the channels of each photo."""
    brightness, contrast, saturation = (
        (1 + amount * drawn[:, column]).view(-1, 1, 1)
        for column, amount in ((6, BRIGHTNESS), (7, CONTRAST), (8, SATURATION))
    )
    channels = photos.flatten(2)  # [N, 3, pixels]
    identity = torch.eye(3, device=photos.device)
    matrix = contrast * (saturation * identity + (1 - saturation) / 3)
    offset = channels.mean((1, 2), keepdim=True) * (brightness - contrast)
    return torch.baddbmm(offset, matrix, channels).clamp_(0, 255).view_as(photos)


def _geometry(drawn: Tensor) -> Tensor:
    """The affine maps of grid_sample, [N, 2, 3]: mirror, rotation, stretch, shift."""
    mirror = torch.where(drawn[:, 0] < 0, -1.0, 1.0)
    angle = drawn[:, 1] * (DEGREES * torch.pi / 180)
    across, down = 1 + STRETCH * drawn[:, 2], 1 + STRETCH * drawn[:, 3]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cosine * across * mirror, -sine * down, 2 * SHIFT * drawn[:, 4]], dim=1),
        torch.stack([sine * across * mirror, cosine * down, 2 * SHIFT * drawn[:, 5]], dim=1),
    ]
    return torch.stack(rows, dim=1)
