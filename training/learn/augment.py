"""Random changes of a photo that keep its number of items.

Photos are never cropped, as that could cut off an item. The changes depend only on (seed, epoch,
photo id), so that neither the order of work nor an interruption affects them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Maximum amounts, in either direction.
DEGREES = 5.0  # of rotation
STRETCH = 0.06  # of each axis; only margins of the bin leave the frame
SHIFT = 0.03  # relative to the side of the photo; as above
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.25, 0.25  # relative

FIELDS = 9  # random numbers per photo


def draw(ids: Sequence[str], *, seed: int, epoch: int) -> Tensor:
    """Draw random numbers for each photo, uniform in [-1, 1), float32 [N, FIELDS]."""
    rows = []
    for photo_id in ids:
        digest = hashlib.sha256(f"{seed}:{epoch}:{photo_id}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
        rows.append(generator.uniform(-1, 1, FIELDS))
    return torch.from_numpy(np.array(rows, np.float32))


def augment(pixels: Tensor, drawn: Tensor, size: int) -> Tensor:
    """Change `pixels`, uint8 [N, any, any, 3], by the numbers from draw().

    Returns float32 [N, size, size, 3], 0–255. One interpolation both transforms and resizes, as
    each one blurs the photo.
    """
    photos = pixels.permute(0, 3, 1, 2).float()
    shape = [len(photos), 3, size, size]
    grid = functional.affine_grid(_geometry(drawn), shape, align_corners=False)
    moved = functional.grid_sample(photos, grid, padding_mode="reflection", align_corners=False)
    return _change_colours(moved, drawn).permute(0, 2, 3, 1)


def _change_colours(photos: Tensor, drawn: Tensor) -> Tensor:
    """Change brightness, contrast and saturation by one matrix product per photo."""
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
    """Return affine matrices for grid_sample, [N, 2, 3]: mirror, rotation, stretch and shift."""
    mirror = torch.where(drawn[:, 0] < 0, -1.0, 1.0)
    angle = drawn[:, 1] * (DEGREES * torch.pi / 180)
    across, down = 1 + STRETCH * drawn[:, 2], 1 + STRETCH * drawn[:, 3]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cosine * across * mirror, -sine * down, 2 * SHIFT * drawn[:, 4]], dim=1),
        torch.stack([sine * across * mirror, cosine * down, 2 * SHIFT * drawn[:, 5]], dim=1),
    ]
    return torch.stack(rows, dim=1)
