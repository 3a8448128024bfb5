"""The bytes of a photo → the network's input.

The one definition: data preparation, training and serving call it, and nothing
else in the project decodes a photo. Normalisation belongs to the ONNX graph, so
that a model cannot be fed with the wrong one.
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

# EXIF orientation → what turns the photo upright (EXIF 2.32, tag 0x0112). ImageOps.exif_transpose
# would also rewrite all other tags, and so refuse a good photo for a bad one among them.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MAX_PIXELS = 50_000_000  # a 50-megapixel camera; beyond it a "photo" is a decompression bomb

# A damaged photo would fill the log. Set once: catch_warnings is not safe in the server's threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PhotoError(ValueError):
    """The bytes are not a photo that can be read; the message is one line."""


def to_pixels(photo: bytes, size: int) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG and squash it to `size` × `size`, never cropping an item away.

    Returns RGB pixels, uint8, [size, size, 3], turned upright by the EXIF orientation.
    Raises PhotoError when the bytes cannot be decoded or hold more than MAX_PIXELS.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(photo), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            raise PhotoError(
                f"the photo has {image.width} × {image.height} pixels, "
                f"at most {MAX_PIXELS:,} are read"
            )
        image.draft("RGB", (size, size))  # JPEG: decode at a fraction of the full size
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if image.mode == "I;16":  # 16-bit grey, which convert() would clip instead of scaling
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    except (PhotoError, MemoryError):
        raise
    except Exception as error:  # for damaged files Pillow raises nearly anything, even asserts
        raise PhotoError(f"not a readable JPEG or PNG photo ({len(photo)} bytes)") from error
    if orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)
