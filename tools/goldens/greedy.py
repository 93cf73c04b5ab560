#!/usr/bin/env python3
"""Greedy continuations by llama.cpp: `greedy.py NAME MODEL.gguf` writes crates/basert/tests/data/greedy/NAME.json.

NAME (smollm2 or gemma3) selects the prompts; further arguments, names of prompts, make only those anew.
"""

import hashlib
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np

import llama_cpp_peer as peer
from prompts import prompts

DATA = Path(__file__).parents[2] / "crates/basert/tests/data/greedy"
GENERATED = 64
CONTEXT = 4096
# Prompts whose last position is also kept as a longer list of logits.
LISTED = ["hello", "prose", "chinese"]


def top(logits, count, digits):
    """The largest logits, as [token, logit] pairs; of equal ones the lowest token first."""
    ids = np.argsort(-logits, kind="stable")[:count]
    return [[int(i), round(float(logits[i]), digits)] for i in ids]


def continuation(model, tokens):
    """Greedy tokens, up to and with the first that ends generation, and the two largest logits each was chosen by."""
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    peer.forget(model)
    logits = first = peer.last_logits(model, tokens)
    generated, top2 = [], []
    while True:
        best = top(logits, 2, 4)
        token = best[0][0]
        generated.append(token)
        top2.append(best)
        if len(generated) == GENERATED or llama_cpp.llama_vocab_is_eog(vocabulary, token):
            return generated, top2, first
        logits = peer.last_logits(model, [token])


def dump(path, header, cases):
    """JSON with one prompt a line."""
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    head = json.dumps(header, indent=0, ensure_ascii=False).strip("{}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{\n{head},\n"prompts": [\n{lines}\n]\n}}\n')


def main():
    name, file, chosen = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    path = DATA / f"{name}.json"
    kept = {case["name"]: case for case in json.loads(path.read_text())["prompts"]} if chosen else {}
    model = peer.load(file, CONTEXT)
    cases = []
    for prompt, text in prompts(name).items():
        if chosen and prompt not in chosen:
            cases.append(kept[prompt])
            continue
        tokens = model.tokenize(text.encode(), add_bos=True, special=True)
        generated, top2, first = continuation(model, tokens)
        case = {"name": prompt, "text": text, "tokens": tokens, "generated": generated, "top2": top2}
        if prompt in LISTED:
            case["top20"] = {"llama.cpp": top(first, 20, 5)}
        cases.append(case)
        print(f"{prompt}: {len(tokens)} + {len(generated)}: {model.detokenize(generated)[:60]!r}", flush=True)
    header = {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "made_by": f"llama-cpp-python {llama_cpp.__version__}, CPU, KV in f16, no flash attention, batches of 512",
    }
    dump(path, header, cases)


if __name__ == "__main__":
    main()
