#!/usr/bin/env python3
"""Writes the expected values of every quantised block format, as the `gguf` package of PyPI computes them.

    python3 -m venv venv && venv/bin/pip install gguf numpy
    venv/bin/python tools/golden-blocks.py crates/basert-core/tests/data

Run by hand when a format is added; the outputs are committed. Two files of little-endian records come out:

- dequantised.bin: type number (u32), count of blocks (u32), the blocks, and their values (f32). Blocks are random
  bytes under random finite scales (normal, subnormal, negative and zero), and bytes that are all 0 or all 255.
- quantised.bin: count of values (u32), the values (f32), and then for each format that the package can quantise
  the type number (u32) and the blocks that it makes of them.
"""

import struct
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

# Where the f16 scales of a block lie.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: [],
}  # fmt: skip
# Exponent bytes of MXFP4, whose scale is a power of two: the smallest, both sides of the smallest normal, the middle,
# and one large enough that the largest code is still finite.
EXPONENTS = [0, 1, 2, 3, 100, 127, 130, 252]

rng = np.random.default_rng(20240607)
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)


def blocks(kind):
    """Some blocks of a format, one a row."""
    elements, size = GGML_QUANT_SIZES[kind]
    count = 4 if elements == 256 else 12
    data = rng.integers(0, 256, (count + 4, size), dtype=np.uint8)
    data[count : count + 2] = 0
    data[count + 2 :] = 255
    scales = rng.normal(0, 0.05, (len(data), 2)).astype(np.float16)
    scales[0] = [6e-8, 0.01]
    scales[1] = [0, -0.5]
    for column, offset in enumerate(SCALES[kind]):
        data[:, offset : offset + 2] = scales[:, column : column + 1].view(np.uint8)
    if kind == T.MXFP4:
        data[:, 0] = np.resize(EXPONENTS, len(data))
    return data


with open(folder / "dequantised.bin", "wb") as out:
    for kind in SCALES:
        data = blocks(kind)
        values = dequantize(data, kind).astype("<f4")
        assert np.isfinite(values).all(), kind
        out.write(struct.pack("<II", kind, len(data)) + data.tobytes() + values.tobytes())

with open(folder / "quantised.bin", "wb") as out:
    values = rng.normal(0, 1, 512).astype("<f4")
    values[::61] *= 4
    values[256:288] = 0
    values[288:320] = np.abs(values[288:320])
    out.write(struct.pack("<I", len(values)) + values.tobytes())
    for kind in [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]:
        out.write(struct.pack("<I", kind) + quantize(values, kind).tobytes())
