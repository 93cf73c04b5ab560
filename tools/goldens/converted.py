#!/usr/bin/env python3
"""GGUF twins of the tiny models of `models/`, by llama.cpp's converter: `converted.py NAME...` makes only those.

LLAMA_CPP is the folder of llama.cpp's sources, such as `vendor/llama.cpp` of llama-cpp-python's. Writes
crates/basert-testkit/data/tiny/NAME.gguf; the vocabulary is a minimal one, everything else the converter's.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

LLAMA_CPP = Path(os.environ["LLAMA_CPP"])
sys.path[1:1] = [str(LLAMA_CPP / "gguf-py"), str(LLAMA_CPP)]

import gguf
import torch
from conversion import ModelBase, get_model_architecture, get_model_class
from conversion.base import ModelType

import minimal_tokenizer
import tiny

STORED = {
    torch.float32: gguf.LlamaFileType.ALL_F32, torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
}

# Some converters look at a folder's tokenizer: by its model they choose how to go on, and they count its tokens.
MODEL_TYPES = {"bert": "WordPiece", "t5": "Unigram", "llama": "BPE"}


def whole(modify):
    """The same generator with what StableLM's loses: tensors of a generator that it returns."""
    def modify_and_more(*args):
        more = yield from modify(*args)
        yield from more or ()
    return modify_and_more


def convert(folder, path, dtype, tokenizer, change):
    """The model of a Hugging Face folder as a GGUF file. `change` makes of its configuration what the converter expects."""
    hparams = change(ModelBase.load_hparams(folder, False))
    kind = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    if tokenizer in MODEL_TYPES:
        described = {"model": {"type": MODEL_TYPES[tokenizer], "vocab": [""] * tiny.VOCABULARY}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(described))
    with torch.inference_mode():
        converter = kind(folder, STORED[dtype], path, eager=True, hparams=hparams)
        # Some only choose another that does the work.
        converter = getattr(converter, "impl", converter)
        converter.set_vocab = lambda: minimal_tokenizer.add_to(converter.gguf_writer, tokenizer, hparams.get("type_vocab_size"))
        converter.modify_tensors = whole(converter.modify_tensors)
        converter.write()


if __name__ == "__main__":
    for name in sys.argv[1:] or tiny.DESCRIBED:
        model = tiny.MODELS[name]
        if not model.get("twin", True):
            continue
        path = tiny.DATA / f"{name}.gguf"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / f"tiny-random-{name}"
            tiny.save(name, folder)
            tiny.publish(name, folder)
            # Adapters of a model are written beside it.
            made = Path(scratch) / path.name
            convert(folder, made, model["dtype"], model.get("tokenizer", "gpt2"), tiny.patch(**model.get("converted", {})))
            shutil.copyfile(made, path)
        print(f"{name}: {path.stat().st_size / 1e3:.0f} kB as GGUF")
