"""Writes tests/data/golden: what Pillow, torchvision and timm make of small pictures. Run from the repository root:
python3 tests/tools/make_data_goldens.py (needs pillow, numpy, torch, torchvision, timm)."""
import io
import pathlib
import struct
import zlib

import numpy as np
import PIL
import timm
import torch
from PIL import Image
from timm.data import create_transform

FOLDER = pathlib.Path("tests/data/golden")
FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def picture(width, height, channels):
    """Half ramps, half noise; tests/data/golden.h holds the same formula."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    x, y, c = (v.astype(np.uint32) for v in (x, y, c))
    h = (x * np.uint32(73856093)) ^ (y * np.uint32(19349663)) ^ (c * np.uint32(83492791))
    h ^= h >> np.uint32(13)
    h *= np.uint32(0x5BD1E995)
    h ^= h >> np.uint32(15)
    ramp = (x * np.uint32(9) + y * np.uint32(5) + c * np.uint32(40)) & np.uint32(255)
    return np.where((x // 5 + y // 3) % 2 == 1, h & np.uint32(255), ramp).astype(np.uint8)


def pil(array):
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def array_of(image):
    a = np.asarray(image)
    return a[:, :, None] if a.ndim == 2 else a


def write_resize():
    cases = [(37, 23, 3, 16, 16), (17, 13, 3, 41, 29), (50, 33, 1, 20, 33), (33, 50, 1, 33, 21), (7, 5, 3, 7, 5),
             (200, 3, 1, 9, 30), (1, 1, 3, 6, 4), (64, 48, 3, 5, 3), (31, 31, 1, 32, 30), (5, 90, 3, 11, 7),
             (96, 96, 1, 64, 64)]
    with open(FOLDER / "resize.bin", "wb") as out:
        for width, height, channels, to_width, to_height in cases:
            for name, flag in FILTERS.items():
                result = array_of(pil(picture(width, height, channels)).resize((to_width, to_height), flag))
                out.write(f"{name} {width} {height} {channels} {to_width} {to_height} {channels}\n".encode())
                out.write(result.tobytes())
        luma = array_of(pil(picture(64, 64, 3)).convert("L"))
        out.write(b"luma 64 64 3 64 64 1\n" + luma.tobytes())


def write_transforms():
    """Normalised tensors of timm's evaluation transform on RGB."""
    cases = [(50, 37, 3, 32, 0.9), (37, 50, 3, 24, 0.875), (101, 67, 1, 32, 1.0), (20, 31, 3, 29, 0.95)]
    with open(FOLDER / "transform.bin", "wb") as out:
        for width, height, channels, size, crop_pct in cases:
            transform = create_transform((3, size, size), is_training=False, interpolation="bicubic",
                                         crop_pct=crop_pct)
            result = transform(pil(picture(width, height, channels)).convert("RGB")).numpy()
            out.write(f"imagenet {width} {height} {channels} {size} {crop_pct} 3\n".encode())
            out.write(result.astype("<f4").tobytes())


def png(width, height, depth, colour, rows, extra=b"", interlace=0):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows, 9))
            + chunk(b"IEND", b""))


def encoded():
    """(file name, bytes, expected pixels)"""
    width, height = 24, 17
    rgb, grey = picture(width, height, 3), picture(width, height, 1)
    def save(image, kind, **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()
    smooth = array_of(pil(picture(9, 7, 3)).resize((width, height), Image.BICUBIC))
    yield "rgb.png", save(pil(rgb), "PNG"), rgb
    yield "grey.png", save(pil(grey), "PNG"), grey
    alpha = np.concatenate([rgb, grey], axis=2)
    yield "rgba.png", save(Image.fromarray(alpha), "PNG"), rgb
    yield "grey_alpha.png", save(Image.fromarray(np.concatenate([grey, 255 - grey], axis=2)), "PNG"), grey
    palette = pil(rgb).quantize(37)
    yield "palette.png", save(palette, "PNG"), np.asarray(palette.convert("RGB"))
    bits = pil(grey).convert("1", dither=Image.NONE)
    yield "bits.png", save(bits, "PNG"), array_of(bits.convert("L"))
    wide = (rgb.astype(np.uint16) << 8) | (255 - rgb)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    yield "rgb16.png", png(width, height, 16, 2, rows), rgb
    wide = (grey.astype(np.uint16) << 8) | (255 - grey)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    yield "grey16.png", png(width, height, 16, 0, rows), grey
    jpegs = {"444.jpg": (pil(smooth), dict(quality=92, subsampling=0)),
             "420.jpg": (pil(smooth), dict(quality=85, subsampling=2)),
             "progressive.jpg": (pil(smooth), dict(quality=90, progressive=True, subsampling=1)),
             "grey.jpg": (pil(smooth[:, :, :1]), dict(quality=90)),
             "cmyk.jpg": (pil(smooth).convert("CMYK"), dict(quality=95)),
             "restart.jpg": (pil(smooth), dict(quality=80, restart_marker_blocks=2)),
             "turned.jpg": (pil(smooth), dict(quality=90, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"))}
    for name, (image, options) in jpegs.items():
        data = save(image, "JPEG", **options)
        back = Image.open(io.BytesIO(data))
        yield name, data, array_of(back if back.mode == "L" else back.convert("RGB"))


def write_images():
    (FOLDER / "images").mkdir(exist_ok=True)
    with open(FOLDER / "images.bin", "wb") as out:
        for name, data, pixels in encoded():
            (FOLDER / "images" / name).write_bytes(data)
            height, width, channels = pixels.shape
            out.write(f"{name} {width} {height} {channels}\n".encode() + pixels.tobytes())


FOLDER.mkdir(parents=True, exist_ok=True)
write_resize()
write_transforms()
write_images()
print(f"Pillow {PIL.__version__}, torch {torch.__version__}, timm {timm.__version__}")
