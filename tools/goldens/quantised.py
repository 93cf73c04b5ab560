#!/usr/bin/env python3
"""Tiny Llamas in every quantised format, written by llama.cpp's quantiser, and their logits computed by `transformers` in
float32 from the dequantised weights (dequantised by gguf-py).

Writes crates/basert-testkit/data/tiny/quantised/FORMAT.gguf and FORMAT.logits.f32, and expected.json with the prompt.
Every matrix of a file has the format: projections, and the embedding, which is the output too. Formats with blocks of
32 values are shown on a model of two layers, those with blocks of 256 on one wide layer.
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
from gguf import GGMLQuantizationType as Type

import llama_cpp_peer as peer
import tiny
import twin

DATA = tiny.DATA / "quantised"
SMALL = tiny.MODELS["llama"]["config"] | {"tie_word_embeddings": True}
WIDE = SMALL | dict(
    hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2, head_dim=32
)
PROMPT = tiny.prompt("quantised")[:24]
FORMATS = {
    "q4_0": (SMALL, "Q4_0"),
    "q4_1": (SMALL, "Q4_1"),
    "q5_0": (SMALL, "Q5_0"),
    "q5_1": (SMALL, "Q5_1"),
    "q8_0": (SMALL, "Q8_0"),
    "iq4_nl": (SMALL, "IQ4_NL"),
    "mxfp4": (SMALL, "MXFP4_MOE"),
    "q2_k": (WIDE, "Q2_K"),
    "q3_k": (WIDE, "Q3_K_S"),
    "q4_k": (WIDE, "Q4_K_S"),
    "q5_k": (WIDE, "Q5_K_S"),
    "q6_k": (WIDE, "Q6_K"),
    "iq4_xs": (WIDE, "IQ4_XS"),
}


def quantise(source, target, kind, file_type):
    """Every matrix of a file in one format."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 1
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    parameters.output_tensor_type = parameters.token_embedding_type = kind
    parameters.pure = True
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert status == 0, f"llama.cpp could not quantise to {file_type}"
    for tensor in gguf.GGUFReader(target).tensors:
        wanted = kind if len(tensor.shape) == 2 else Type.F32
        assert tensor.tensor_type == wanted, f"{target.name}: {tensor.name} is {tensor.tensor_type.name}"


def make(name, config, file_type):
    """One file and its logits."""
    kind = Type[name.upper()]
    path = DATA / f"{name}.gguf"
    model = tiny.model_of(config)
    tiny.fill(model, "quantised")
    original = tiny.logits_of(model, PROMPT)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "f32.gguf"
        twin.write(source, model, Type.F32)
        quantise(source, path, kind, file_type)
    logits = tiny.logits_of(twin.read(path, model), PROMPT)
    tiny.write_logits(DATA / f"{name}.logits.f32", logits)
    theirs = peer.all_logits(path, PROMPT, **peer.EXACT)
    print(
        f"{name}: {path.stat().st_size / 1e3:.0f} kB; quantisation moves logits by {twin.distance(logits, original):.1e}, "
        f"llama.cpp's rounding of activations by {twin.distance(theirs, logits):.1e}"
    )


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FORMATS:
        make(name, *FORMATS[name])
    expected = {"prompt": PROMPT, "vocabulary": tiny.VOCABULARY, "formats": list(FORMATS)}
    (DATA / "expected.json").write_text(json.dumps(expected) + "\n")
