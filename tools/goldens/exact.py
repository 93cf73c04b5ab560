#!/usr/bin/env python3
"""How far llama.cpp's logits are from exact ones: `exact.py NAME MODEL.gguf`, after `greedy.py` with the same arguments.

Runs `transformers` in float32 on the dequantised weights over every prompt and its continuation, adds the 20 largest
logits of the listed prompts to NAME.json, and prints how the two computations differ where `greedy.py` kept logits. Also
prints how llama.cpp differs from itself when it is given the continuation as one batch, and when its KV cache is in f32 too.
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

import greedy
import llama_cpp_peer as peer
import tiny
import twin


def model_of(path):
    """The model of a GGUF file, in float32."""
    fields = gguf.GGUFReader(path).fields
    arch = fields["general.architecture"].contents()

    def read(key, default=None):
        return fields[f"{arch}.{key}"].contents() if f"{arch}.{key}" in fields else default

    config = dict(
        vocab_size=len(fields["tokenizer.ggml.tokens"].data),
        hidden_size=read("embedding_length"),
        intermediate_size=read("feed_forward_length"),
        num_hidden_layers=read("block_count"),
        num_attention_heads=read("attention.head_count"),
        num_key_value_heads=read("attention.head_count_kv"),
        max_position_embeddings=read("context_length"),
        rms_norm_eps=read("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings=True,
    )
    rope = {"rope_type": "default", "rope_theta": read("rope.freq_base")}
    if arch == "gemma3":
        local = {"rope_type": "default", "rope_theta": 10000.0}
        config |= dict(
            model_type="gemma3_text", head_dim=read("attention.key_length"), sliding_window=read("attention.sliding_window"),
            query_pre_attn_scalar=read("attention.key_length"),
            rope_parameters={"full_attention": rope, "sliding_attention": local},
        )
    else:
        config |= dict(model_type="llama", rope_parameters=rope)
    return twin.read(path, tiny.model_of(config)).eval()


@torch.no_grad()
def logits_of(model, prompt, generated):
    """The logits each generated token is chosen by, [generated, vocabulary]."""
    tokens = torch.tensor([prompt + generated[:-1]])
    return model(tokens, use_cache=False, logits_to_keep=len(generated)).logits[0].numpy()


class Tally:
    """Differences between the logits llama.cpp chose by and another computation of them."""

    def __init__(self, what):
        self.what = what
        self.logits, self.gaps, self.lost = [], [], []

    def add(self, case, rows):
        """Compares the two largest logits of every generated token."""
        for position, (row, ((a, first), (b, second))) in enumerate(zip(rows, case["top2"])):
            self.logits += [abs(first - row[a]), abs(second - row[b])]
            self.gaps.append(abs((first - second) - (row[a] - row[b])))
            best = int(row.argmax())
            if best != a:
                self.lost.append(first - second)
                print(
                    f"{case['name']}, token {position}: llama.cpp {a} by {first - second:.4f}, "
                    f"{self.what} {best} by {row[best] - row[a]:.4f}", flush=True
                )

    def report(self):
        """Prints the distributions, and how many choices differ that a gap would have called safe."""
        for what, values in ("a logit of the top two", self.logits), ("their gap", self.gaps):
            quantiles = ", ".join(f"{np.quantile(values, q):.4f} ({100 * q:g} %)" for q in (0.5, 0.9, 0.99, 1))
            print(f"{self.what}: {what} differs by {quantiles}")
        safe = ", ".join(f"{sum(gap > limit for gap in self.lost)} above {limit}" for limit in (0.05, 0.1, 0.2, 0.3, 0.5))
        print(f"{self.what}: {len(self.lost)} of {len(self.gaps)} tokens differ, by the gap: {safe}")


def main():
    name, file = sys.argv[1], Path(sys.argv[2])
    path = greedy.DATA / f"{name}.json"
    header = json.loads(path.read_text())
    assert header["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest(), "the references are of another file"
    cases = header.pop("prompts")
    model, exact = model_of(file), Tally("exact")
    again = {
        Tally("llama.cpp in one batch"): peer.load(file, greedy.CONTEXT),
        Tally("llama.cpp in one batch, KV in f32"): peer.load(file, greedy.CONTEXT, **peer.EXACT),
    }
    for case in cases:
        logits = logits_of(model, case["tokens"], case["generated"])
        if "top20" in case:
            case["top20"]["transformers"] = greedy.top(logits[0], 20, 5)
            apart = max(abs(value - float(logits[0][token])) for token, value in case["top20"]["llama.cpp"])
            print(f"{case['name']}: the 20 largest logits differ by up to {apart:.4f}")
        exact.add(case, logits)
        for tally, itself in again.items():
            tally.add(case, peer.teacher_forced(itself, case["tokens"], case["generated"]))
    for tally in [exact, *again]:
        tally.report()
    header["exact_by"] = f"transformers {transformers.__version__} in float32, weights by gguf-py {version('gguf')}"
    greedy.dump(path, header, cases)


if __name__ == "__main__":
    main()
