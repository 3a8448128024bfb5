"""The bytes of a photo → the network's input.

Data preparation, training and serving have no other way from a photo to the network.
Normalisation is part of the ONNX graph, so that it always matches the model.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

# How to turn a photo upright, by its EXIF orientation (EXIF 2.32, tag 0x0112).
# ImageOps.exif_transpose would also rewrite all other tags, and fail on a damaged one.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MAX_PIXELS = 50_000_000  # 50-megapixel cameras; anything larger is taken for a decompression bomb
# A progressive JPEG has about ten; each takes a pass over all pixels, however few bytes it has.
MAX_SCANS = 100
START_OF_SCAN = b"\xff\xda"  # ITU T.81, table B.1; within a scan, 0xff is followed by 0

# Damaged photos would fill the log. Set globally, as catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PhotoError(ValueError):
    """The bytes are not a readable photo; the message is one line."""


def to_pixels(photo: bytes | NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG and resize it to `size` × `size` without cropping.

    `photo` may also be decoded already: RGB pixels [height, width, 3]. Returns RGB pixels, uint8,
    [size, size, 3], turned upright by the EXIF orientation. Raises PhotoError when the bytes
    cannot be decoded or exceed MAX_PIXELS or MAX_SCANS.
    """
    if isinstance(photo, np.ndarray):
        return _squash(Image.fromarray(photo), size)
    with _reading(photo) as image:
        image.draft("RGB", (size, size))  # JPEG: decode at a fraction of the full size
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if image.mode == "I;16":  # 16-bit grey, which convert() would clip instead of scale
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    squashed = _squash(rgb, size)
    if orientation in UPRIGHT:  # last, when there are fewest pixels
        squashed = np.asarray(Image.fromarray(squashed).transpose(UPRIGHT[orientation]))
    return squashed


def size_of(photo: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG or PNG. Raises PhotoError as to_pixels does."""
    with _reading(photo) as image:
        return image.size


@contextmanager
def _reading(photo: bytes) -> Iterator[Image.Image]:
    """Open the photo and read its header; errors within the block become PhotoErrors."""
    try:
        image: Image.Image = Image.open(io.BytesIO(photo), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            raise PhotoError(
                f"the photo has {image.width} × {image.height} pixels, "
                f"at most {MAX_PIXELS:,} are read"
            )
        if photo.count(START_OF_SCAN) > MAX_SCANS:
            raise PhotoError(f"the photo has over {MAX_SCANS} scans, save it again as a usual JPEG")
        yield image
    except (PhotoError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, several times ours
        message = f"the photo is too large, at most {MAX_PIXELS:,} pixels are read"
        raise PhotoError(message) from error
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise PhotoError(f"not a readable JPEG or PNG photo ({len(photo)} bytes)") from error


def _squash(rgb: Image.Image, size: int) -> NDArray[np.uint8]:
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)
