"""Pictures of every kind as RGB: all levels, white below transparency, or refused by name."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from picture_bytes import png, tiff
from PIL import Image

from mrl.data.colours import to_rgb
from mrl.data.image_folder import CorruptImageError, decode

LEVELS = np.arange(256)
RAMP = np.tile((LEVELS * 257).astype(np.uint16), (4, 1))  # 256 levels of 16 bits
SIZE = RAMP.shape[::-1]


def decoded(folder: Path, content: bytes, name: str = "a.png") -> np.ndarray:
    (folder / name).write_bytes(content)
    picture = decode(os.fsencode(folder / name))
    assert picture.mode == "RGB"
    return np.asarray(picture)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def twelve_bits() -> bytes:
    """TIFF packs two numbers into three bytes."""
    pairs = (LEVELS * 4095 // 255).reshape(-1, 2)
    return b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs.tolist())


def plain_pgm(white: int) -> bytes:
    values = " ".join(str(v) for v in LEVELS * white // 255)
    return f"P2\n256 1\n{white}\n{values}\n".encode()


DEEP_GREY = {
    "png": lambda: saved(Image.fromarray(RAMP), "PNG"),
    "pgm": lambda: b"P5\n256 4\n65535\n" + RAMP.astype(">u2").tobytes(),
    "plain-pgm": lambda: plain_pgm(65535),
    "pgm-12": lambda: b"P5\n256 1\n4095\n" + (LEVELS * 4095 // 255).astype(">u2").tobytes(),
    "plain-pgm-12": lambda: plain_pgm(4095),
    "tiff": lambda: saved(Image.fromarray(RAMP), "TIFF"),
    "tiff-big-endian": lambda: saved(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    "tiff-lzw": lambda: saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
    "tiff-white-is-0": lambda: tiff(RAMP[:, ::-1].astype("<u2").tobytes(), SIZE, 16, photometric=0),
    "tiff-12": lambda: tiff(twelve_bits(), (256, 1), 12),
    "jpeg-2000": lambda: saved(Image.fromarray(RAMP), "JPEG2000"),
}


@pytest.mark.parametrize("kind", DEEP_GREY)
def test_levels_of_deep_greys_are_kept(tmp_path: Path, kind: str) -> None:
    found = decoded(tmp_path, DEEP_GREY[kind]()).astype(int)
    assert np.abs(found - LEVELS[None, :, None]).max() <= ("12" in kind)  # no multiple of 255


def test_16_bits_are_rounded(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = decoded(tmp_path, saved(Image.fromarray(values), "PNG"))[..., 0]
    assert (found == np.rint(values / 257)).all()


@pytest.mark.parametrize("colour", [2, 4, 6], ids=["rgb", "grey-alpha", "rgba"])
def test_the_high_bytes_of_deep_colours_are_taken(tmp_path: Path, colour: int) -> None:
    channels = {2: 3, 4: 2, 6: 4}[colour]
    values = np.repeat(RAMP[..., None], channels, 2)
    values[..., channels - 1 if colour > 2 else channels :] = 65535
    rows = values.astype(">u2").reshape(4, -1).view(np.uint8)
    found = decoded(tmp_path, png(rows, SIZE, 16, colour))
    assert (found == LEVELS[None, :, None]).all()


REFUSED: dict[str, Callable[[], bytes]] = {
    "int32-tiff": lambda: saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "float-tiff": lambda: saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "float-pfm": lambda: saved(Image.fromarray(RAMP.astype(np.float32)), "PPM"),
    "int16-tiff": lambda: tiff(RAMP.tobytes(), SIZE, 16, sample_format=2),
    "int8-tiff": lambda: tiff(RAMP.astype(np.uint8).tobytes(), SIZE, 8, sample_format=2),
    "deep-colour-key": lambda: png(
        np.zeros((1, 6), np.uint8), (1, 1), 16, 2, struct.pack(">3H", 0, 1, 0)
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_pictures_of_unknown_range_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CorruptImageError, match="/a.png: .*convert it to 8") as caught:
        decoded(tmp_path, REFUSED[kind]())
    assert kind.startswith(("deep", "int8")) or "Pillow's mode" in str(caught.value)


def covered(shown: int, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """(RGBA (8, 256, 4) of every alpha, what is seen of it); ``hidden`` lies where alpha is 0."""
    rgba = np.random.default_rng(shown).integers(0, 256, (8, 256, 4), dtype=np.uint8)
    rgba[..., 3] = LEVELS
    rgba[:, 0, :3] = hidden
    alpha = rgba[..., 3:] / 255
    return rgba, rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("hidden", [0, 200])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG2000"])
def test_partly_covered_pixels_are_blended_with_white(
    tmp_path: Path, kind: str, hidden: int
) -> None:
    rgba, seen = covered(1, hidden)
    lossless = {"WEBP": {"lossless": True, "exact": True}}.get(kind, {})
    found = decoded(tmp_path, saved(Image.fromarray(rgba), kind, **lossless))
    assert np.abs(found - seen).max() < 0.51


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha(tmp_path: Path, kind: str) -> None:
    rgba, _ = covered(2, 77)
    alpha = rgba[..., 3] / 255
    grey = Image.fromarray(rgba[..., [0, 3]])
    seen = rgba[..., 0] * alpha + 255 * (1 - alpha)
    assert np.abs(decoded(tmp_path, saved(grey, kind)) - seen[..., None]).max() < 0.51


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_that_are_premultiplied(mode: str) -> None:
    rgba, seen = covered(3, 0)
    if mode == "La":
        rgba[..., 1] = rgba[..., 2] = rgba[..., 0]
        seen = np.repeat(seen[..., :1], 3, 2)
    straight = Image.fromarray(rgba).convert("RGBA" if mode == "RGBa" else "LA")
    found = np.asarray(to_rgb(straight.convert(mode)))
    # Dividing by a small alpha loses levels; that they are multiplied by it again hides it.
    assert np.abs(found - seen).max() < 1.6


@pytest.mark.parametrize(
    ("kind", "transparency", "alphas"),
    [
        ("PNG", bytes([0, 128, 255]), [0, 128, 255]),
        ("PNG", bytes([255, 0]), [255, 0, 255]),
        ("PNG", 1, [255, 0, 255]),
        ("GIF", 1, [255, 0, 255]),
    ],
)
def test_palettes_with_transparent_colours(
    tmp_path: Path, kind: str, transparency: bytes | int, alphas: list[int]
) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    found = decoded(tmp_path, saved(picture, kind, transparency=transparency))[0]
    alpha = np.array(alphas)[:, None] / 255
    colours = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50]])
    assert np.abs(found - (colours * alpha + 255 * (1 - alpha))).max() < 0.51


def test_palette_with_an_alpha_channel(tmp_path: Path) -> None:
    picture = Image.new("PA", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((0, 0), (0, 255))
    picture.putpixel((1, 0), (1, 0))
    assert decoded(tmp_path, saved(picture, "TIFF")).tolist() == [[[10, 20, 30], [255] * 3]]


@pytest.mark.parametrize(("bits", "key"), [(1, 0), (1, 1), (2, 2), (4, 3), (8, 3), (16, 3000)])
def test_a_transparent_level_of_grey(tmp_path: Path, bits: int, key: int) -> None:
    white = 2**bits - 1
    values = np.arange(white + 1) if bits < 16 else np.array([0, 2999, 3000, 65535])
    if bits == 16:
        row = values.astype(">u2").view(np.uint8)
    else:
        row = np.packbits(np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -bits:])
    found = decoded(tmp_path, png(row[None], (len(values), 1), bits, 0, struct.pack(">H", key)))[0]
    expected = np.where(values == key, 255, np.rint(values * 255 / white))
    assert (found == expected[:, None]).all()


def test_a_transparent_colour(tmp_path: Path) -> None:
    colours = np.array([[[1, 2, 3], [1, 2, 4], [9, 9, 9]]], np.uint8)
    content = saved(Image.fromarray(colours), "PNG", transparency=(1, 2, 4))
    assert decoded(tmp_path, content).tolist() == [[[1, 2, 3], [255] * 3, [9] * 3]]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "P", "RGB", "RGBA")],
        *[(mode, "JPEG") for mode in ("L", "RGB", "CMYK")],
        *[(mode, "TIFF") for mode in ("1", "P", "CMYK", "YCbCr", "LAB", "RGBX")],
        *[("RGB", kind) for kind in ("BMP", "PPM", "WEBP", "JPEG2000", "MPO")],
        ("P", "GIF"),
    ],
)
def test_others_are_as_pillow_converts_them(tmp_path: Path, mode: str, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    content = saved(Image.fromarray(pixels).convert(mode), kind)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    assert (decoded(tmp_path, content, "a.jpg") == expected).all()


def test_an_orientation_is_not_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    content = saved(Image.new("RGB", (30, 20)), "JPEG", exif=exif)
    assert Image.open(BytesIO(content)).getexif()[0x112] == 6
    assert decoded(tmp_path, content, "a.jpg").shape == (20, 30, 3)


def test_colours_that_adobe_inverts(tmp_path: Path) -> None:
    """A CMYK JPEG with Adobe's marker, as Photoshop and Pillow write it: no ink is 255."""
    content = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert b"Adobe" in content
    assert np.abs(decoded(tmp_path, content).astype(int) - (255, 0, 0)).max() < 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_picture_of_several(tmp_path: Path, kind: str) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = saved(first, kind, save_all=True, append_images=[second], **lossless)
    assert (decoded(tmp_path, content) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b""]
)
def test_what_is_no_picture_of_pixels_is_not_opened(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CorruptImageError, match="a.jpg: it is none of JPEG, PNG"):
        decoded(tmp_path, content, "a.jpg")


def test_very_large_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("RGB", (30, 30)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(CorruptImageError, match=r"a.png: .*\(900 pixels\) exceeds limit of 800"):
        decoded(tmp_path, content)
    monkeypatch.undo()
    code = (
        "import os, sys; from PIL import Image; from mrl.data.image_folder import decode\n"
        "Image.MAX_IMAGE_PIXELS = 500; print(decode(os.fsencode(sys.argv[1])).size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("(30, 30)\n", "")
