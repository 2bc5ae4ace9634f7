"""Writes tests/data/arrays: small files by NumPy, safetensors and Pillow, which the readers of runtime/data must agree with.

Made with NumPy 2.4, safetensors 0.8 and Pillow 13; run in tests/data:  python3 make_arrays.py
The values are closed formulas, so that the tests know them: element i of an array (row-major) is i * 0.5 - 3 for floats
and i for integers.
"""
import gzip
import struct
import zlib

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

FOLDER = "arrays/"


def floats(shape, dtype):
    return (np.arange(np.prod(shape, dtype=int)) * 0.5 - 3).reshape(shape).astype(dtype)


def integers(shape, dtype):
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


for name, array in {
    "f4_c": floats((2, 3, 4), "<f4"),
    "f4_fortran": np.asfortranarray(floats((2, 3, 4), "<f4")),
    "f8_big": floats((5,), ">f8"),
    "f2": floats((3, 3), "<f2"),
    "i8_scalar": np.array(7, "<i8"),
    "i4_fortran_big": np.asfortranarray(integers((3, 5), ">i4")),
    "u1": integers((2, 4, 4), "u1"),
    "bool": integers((6,), "u1") % 2 == 0,
    "empty": floats((0, 3), "<f4"),
}.items():
    np.save(FOLDER + name + ".npy", array)
for version in ((2, 0), (3, 0)):
    with open(FOLDER + f"f4_version_{version[0]}.npy", "wb") as file:
        np.lib.format.write_array(file, floats((2, 2), "<f4"), version=version)

np.savez(FOLDER + "stored.npz", images=floats((2, 1, 3, 3), "<f4"), labels=integers((2,), "<i8"))
np.savez_compressed(FOLDER + "deflated.npz", images=floats((2, 1, 3, 3), "<f4"), zeros=np.zeros((64, 64), "<f4"))
save_file({"weight": floats((2, 3), "<f4"), "half": floats((4,), "<f2"), "steps": integers((3,), "<i8"),
           "scalar": np.array(1.5, "<f8"), "none": floats((0,), "<f4")},
          FOLDER + "numpy.safetensors", metadata={"format": "np", "step": "12"})


def idx(array, code):
    return struct.pack(">BBBB", 0, 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


pixels = integers((5, 4, 3), "u1")
with open(FOLDER + "u1.idx3-ubyte", "wb") as file:
    file.write(idx(pixels, 0x08))
with open(FOLDER + "u1.idx3-ubyte.gz", "wb") as file:
    file.write(gzip.compress(idx(pixels, 0x08), mtime=0))
with open(FOLDER + "f4.idx2", "wb") as file:
    file.write(idx(floats((2, 3), ">f4"), 0x0D))
with open(FOLDER + "i4.idx1", "wb") as file:
    file.write(idx(integers((4,), ">i4"), 0x0C))

# Images of 4 rows and 5 columns; the value of row y, column x, channel c is 40 * y + 10 * x + c.
rows, columns, channels = np.meshgrid(np.arange(4), np.arange(5), np.arange(4), indexing="ij")
values = (40 * rows + 10 * columns + channels).astype("u1")
Image.fromarray(values[:, :, 0]).save(FOLDER + "grey.png")
Image.fromarray(values[:, :, :2]).save(FOLDER + "grey_alpha.png")
Image.fromarray(values[:, :, :3]).save(FOLDER + "rgb.png")
Image.fromarray(values).save(FOLDER + "rgba.png")
palette = Image.fromarray(integers((4, 5), "u1"), "P")
palette.putpalette([v for i in range(20) for v in values[i // 5, i % 5, :3].tolist()])
palette.save(FOLDER + "palette.png")
Image.fromarray(values[:, :, 0] > 100).save(FOLDER + "one_bit.png")
Image.fromarray(values[:, :, 0].astype("<u2") * 257).save(FOLDER + "sixteen_bit.png")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# Pillow writes no interlaced files: Adam7 passes (start row, start column, row step, column step) of the grey image.
passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
raw = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in values[y::dy, x::dx, 0] if row.size)
with open(FOLDER + "interlaced.png", "wb") as file:
    file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 8, 0, 0, 0, 1))
               + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))

# Scaling as Pillow does it: the middle of the image that has the wanted shape, BILINEAR.
source = (np.arange(17 * 24 * 3) * 7919 % 251).reshape(17, 24, 3).astype("u1")
Image.fromarray(source).save(FOLDER + "scale_source.png")
for height, width in ((8, 8), (34, 40), (5, 20)):
    step = min(17 / height, 24 / width)
    top, left = (17 - height * step) / 2, (24 - width * step) / 2
    box = (left, top, left + width * step, top + height * step)
    scaled = Image.fromarray(source).resize((width, height), Image.Resampling.BILINEAR, box=box)
    np.save(FOLDER + f"scaled_{height}x{width}.npy", np.asarray(scaled))
