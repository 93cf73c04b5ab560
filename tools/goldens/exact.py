#!/usr/bin/env python3
"""How far llama.cpp's logits are from exact ones: `exact.py NAME MODEL.gguf`, after `greedy.py` with the same arguments.

Runs `transformers` in float32 on the dequantised weights over every prompt and its continuation, adds the 20 largest
logits of the listed prompts to NAME.json, and prints how the two computations differ where `greedy.py` kept logits.
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
    with torch.no_grad(), transformers.initialization.no_init_weights():
        return twin.read(path, tiny.model_of(config)).eval()


@torch.no_grad()
def logits_of(model, prompt, generated):
    """The logits each generated token is chosen by, [generated, vocabulary]."""
    tokens = torch.tensor([prompt + generated[:-1]])
    return model(tokens, use_cache=False, logits_to_keep=len(generated)).logits[0].numpy()


def main():
    name, file = sys.argv[1], Path(sys.argv[2])
    path = greedy.DATA / f"{name}.json"
    header = json.loads(path.read_text())
    assert header["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest(), "the references are of another file"
    cases = header.pop("prompts")
    model = model_of(file)
    differences, gaps, disagreements = [], [], []
    for case in cases:
        logits = logits_of(model, case["tokens"], case["generated"])
        if "top20" in case:
            case["top20"]["transformers"] = greedy.top(logits[0], 20, 5)
            theirs = case["top20"]["llama.cpp"]
            apart = max(abs(value - float(logits[0][token])) for token, value in theirs)
            print(f"{case['name']}: the 20 largest logits differ by up to {apart:.4f}")
        worst = 0.0
        for position, (row, ((a, first), (b, second))) in enumerate(zip(logits, case["top2"])):
            differences += [abs(first - row[a]), abs(second - row[b])]
            gaps.append(abs((first - second) - (row[a] - row[b])))
            worst = max(worst, differences[-1], differences[-2])
            best = int(row.argmax())
            if best != a:
                disagreements.append(first - second)
                print(
                    f"{case['name']}, token {position}: llama.cpp {a} by {first - second:.4f}, "
                    f"exact {best} by {row[best] - row[a]:.4f}"
                )
        print(f"{case['name']}: {len(case['tokens'])} + {len(case['generated'])} tokens, top two differ by up to {worst:.4f}", flush=True)
    for what, values in ("logits of the top two", differences), ("their gap", gaps):
        quantiles = ", ".join(f"{100 * q:g} % {np.quantile(values, q):.4f}" for q in (0.5, 0.9, 0.99, 1))
        print(f"difference in {what}: {quantiles}")
    print(f"{len(gaps)} tokens, {len(disagreements)} chosen differently, {sum(d > 0.05 for d in disagreements)} of them by more than 0.05")
    header["exact_by"] = f"transformers {transformers.__version__} in float32, weights dequantised by gguf-py {version('gguf')}"
    greedy.dump(path, header, cases)


if __name__ == "__main__":
    main()
