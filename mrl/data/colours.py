"""Pictures of every kind as 8-bit RGB: on a white page, with all their levels, or refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# Pillow keeps grey levels of 16 bits in its mode of 32 for these; other files have any range there.
SIXTEEN_BITS_AS_I = ("PNG", "PPM")
# From the depth of grey PNGs to Pillow's 8 bits. It does not scale the transparent level along.
PNG_STEPS = {"L;2": 85, "L;4": 17}
# Numbers of TIFF's tags.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2


def to_rgb(image: Image.Image) -> Image.Image:
    """What is seen of ``image``, the first if there are several, in RGB of 8 bits.

    Transparent pictures are laid on white: what lies below full transparency is no part of them,
    and pixels that are partly covered are blended. Grey levels of 16 bits (TIFF: also 12) are
    scaled to 0..255, rounded; Pillow itself reads the high bytes of colours. An orientation in
    EXIF and colour profiles are not followed, as in torchvision's and FFCV's loaders.

    Raises:
        ValueError: if it does not follow from the file which value is white, or what is covered.
    """
    stored = _png_layout(image)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # TIFF's
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS_AS_I):
        return _from_16_bits(image, tags).convert("RGB")
    if image.mode not in (*OPAQUE, *WITH_ALPHA):
        raise ValueError(
            f"its pixels are floats or integers of any range (Pillow's mode {image.mode}), so that "
            "none is known to be white: convert it to 8 or 16 bits"
        )
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError("its pixels may be negative (signed integers): convert it to 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode in ("1", "L"):
        return _without_level(image, image.info["transparency"] * PNG_STEPS.get(stored, 1))
    if stored == "RGB;16B":
        raise ValueError(
            "it names one colour of 16 bits as transparent, and the colours are read in 8: convert "
            "it to 8 bits, or to an alpha channel"
        )
    return _on_white(image)


def _png_layout(image: Image.Image) -> str:
    """How Pillow calls the layout of a PNG's pixels; to be asked before they are loaded."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if image.format == "PNG" and tiles else ""


def _from_16_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    levels = np.asarray(image).astype(np.uint32)
    white = 2 ** tags.get(BITS, (16,))[0] - 1
    grey = ((levels * 255 + white // 2) // white).astype(np.uint8)
    if tags and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # of these alone Pillow makes negatives
        grey = 255 - grey
    if "transparency" in image.info:
        grey[levels == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _without_level(image: Image.Image, level: int) -> Image.Image:
    """A grey picture with white in place of one level."""
    levels = [255 if value == level else value for value in range(256)]
    return image.convert("L").point(levels).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # to RGBA Pillow would drop its alpha
    covered = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(covered, mask=covered)
    return page
