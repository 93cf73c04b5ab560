#!/usr/bin/env python3
"""GGUF twins of the tiny models: the same weights as llama.cpp's converter would write them, checked against llama.cpp.

Writes crates/basert-testkit/data/tiny/NAME.gguf for each folder beside it. The inverse, from a GGUF file of any formats
to a `transformers` model in float32, is here too.
"""

import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

import llama_cpp_peer as peer
import minimal_tokenizer
import tiny

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3",
    "stablelm": "stablelm", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss",
}
STORED = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}

# Tensors as called in GGUF and Hugging Face; `{}` is the number of the layer.
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_q.bias": "model.layers.{}.self_attn.q_proj.bias",
    "blk.{}.attn_k.bias": "model.layers.{}.self_attn.k_proj.bias",
    "blk.{}.attn_v.bias": "model.layers.{}.self_attn.v_proj.bias",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.attn_q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "blk.{}.attn_k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}
GEMMA_NAMES = NAMES | {
    "blk.{}.post_attention_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "blk.{}.post_ffw_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}
STABLELM_NAMES = NAMES | {
    "output_norm.bias": "model.norm.bias",
    "blk.{}.attn_norm.bias": "model.layers.{}.input_layernorm.bias",
    "blk.{}.ffn_norm.bias": "model.layers.{}.post_attention_layernorm.bias",
}
QWEN3MOE_NAMES = NAMES | {
    "blk.{}.ffn_gate_inp.weight": "model.layers.{}.mlp.gate.weight",
    "blk.{}.ffn_gate_exps.weight": "model.layers.{}.mlp.experts.gate_up_proj/gate",
    "blk.{}.ffn_up_exps.weight": "model.layers.{}.mlp.experts.gate_up_proj/up",
    "blk.{}.ffn_down_exps.weight": "model.layers.{}.mlp.experts.down_proj",
}
GPT_OSS_NAMES = {name: theirs for name, theirs in NAMES.items() if "ffn_norm" not in name} | {
    "blk.{}.attn_output.bias": "model.layers.{}.self_attn.o_proj.bias",
    "blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.sinks",
    "blk.{}.post_attention_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate_inp.weight": "model.layers.{}.mlp.router.weight",
    "blk.{}.ffn_gate_inp.bias": "model.layers.{}.mlp.router.bias",
    "blk.{}.ffn_gate_exps.weight": "model.layers.{}.mlp.experts.gate_up_proj/gate",
    "blk.{}.ffn_gate_exps.bias": "model.layers.{}.mlp.experts.gate_up_proj_bias/gate",
    "blk.{}.ffn_up_exps.weight": "model.layers.{}.mlp.experts.gate_up_proj/up",
    "blk.{}.ffn_up_exps.bias": "model.layers.{}.mlp.experts.gate_up_proj_bias/up",
    "blk.{}.ffn_down_exps.weight": "model.layers.{}.mlp.experts.down_proj",
    "blk.{}.ffn_down_exps.bias": "model.layers.{}.mlp.experts.down_proj_bias",
}
TABLES = {"gemma3": GEMMA_NAMES, "stablelm": STABLELM_NAMES, "qwen3moe": QWEN3MOE_NAMES, "gpt-oss": GPT_OSS_NAMES}


def names(arch, layers):
    """Hugging Face names by GGUF names."""
    table = TABLES.get(arch, NAMES)
    return {ours.format(i): theirs.format(i) for ours, theirs in table.items() for i in range(layers)}


def interleaved(weight, heads):
    """The rows of q or k with the two halves of each rotated pair made neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def halved(weight, heads):
    """The inverse of `interleaved`."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def heads_of(name, config):
    """Number of heads of q or k, none for other weights."""
    part = name.split(".", 2)[-1]
    return {"attn_q.weight": config.num_attention_heads, "attn_k.weight": config.num_key_value_heads}.get(part)


def apart(weights, arch):
    """The weights with experts as GGUF has them: gates and what they gate apart, rows of output features.

    In gpt-oss the two take turns, and matrices are transposed; elsewhere one lies below the other.
    """
    found = {}
    for name, value in weights.items():
        if arch == "gpt-oss" and ".experts." in name and not name.endswith("_bias"):
            value = value.swapaxes(1, 2)
        if ".experts.gate_up_proj" in name and arch == "gpt-oss":
            found |= {f"{name}/gate": value[:, ::2], f"{name}/up": value[:, 1::2]}
        elif ".experts.gate_up_proj" in name:
            half = value.shape[1] // 2
            found |= {f"{name}/gate": value[:, :half], f"{name}/up": value[:, half:]}
        else:
            found[name] = value
    return found


def together(weights, arch):
    """The inverse of `apart`."""
    found = {}
    for name, value in weights.items():
        if name.endswith("/up"):
            continue
        if name.endswith("/gate"):
            name = name.removesuffix("/gate")
            both = [value, weights[f"{name}/up"]]
            value = torch.stack(both, 2).flatten(1, 2) if arch == "gpt-oss" else torch.cat(both, 1)
        if arch == "gpt-oss" and ".experts." in name and not name.endswith("_bias"):
            value = value.swapaxes(1, 2)
        found[name] = value
    return found


def converted(name, value, arch, config, permute, norm_offset):
    """One tensor brought from Hugging Face's conventions to GGUF's, or back with the inverse permutation and offset."""
    heads = heads_of(name, config)
    if arch == "llama" and heads:
        return permute(value, heads)
    if arch == "gemma3" and name.endswith("norm.weight"):
        return value + norm_offset
    return value


def rope_factors(config):
    """By how much the Llama 3 scaling divides each rotary frequency, as a tensor of half a head."""
    scaling = config.rope_parameters
    half = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    wavelength = 2 * np.pi * scaling["rope_theta"] ** half
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


def write(path, model, stored):
    """A GGUF file of a model: matrices in the given format, everything else in float32."""
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny random {config.model_type}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if arch == "stablelm":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim))
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_file_type({Type.F32: 0, Type.F16: 1, Type.BF16: 32}[stored])
    minimal_tokenizer.add_to(writer, "llama" if config.model_type in ("llama", "mistral", "gemma3_text") else "gpt2")

    weights = apart(model.float().state_dict(), arch)
    for ours, theirs in names(arch, config.num_hidden_layers).items():
        if theirs not in weights or (ours == "output.weight" and config.tie_word_embeddings):
            continue
        value = converted(ours, weights[theirs].numpy(), arch, config, interleaved, 1)
        kind = stored if value.ndim >= 2 and not ours.endswith(".bias") and "ffn_gate_inp" not in ours else Type.F32
        writer.add_tensor(ours, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path, model):
    """Fills a model with the dequantised weights of a GGUF file. Every weight must be there."""
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    theirs = names(arch, config.num_hidden_layers)
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist())
        value = converted(tensor.name, value, arch, config, halved, -1)
        weights[theirs[tensor.name]] = torch.from_numpy(np.array(value, dtype=np.float32))
    weights = together(weights, arch)
    if "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model


def distance(found, expected):
    """Largest difference of two arrays relative to the largest magnitude of the second."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check(name, model, path):
    """Compares a twin with `transformers`: in float32, and as it is stored."""
    folder = tiny.DATA / name
    tokens = tiny.prompt(name)
    # llama.cpp knows no window in models it calls llama.
    full = folder / "logits-no-window.f32"
    expected = np.fromfile(full if full.exists() else folder / "logits.f32", "<f4").reshape(len(tokens), -1)
    config = json.loads((folder / ("config-no-window.json" if full.exists() else "config.json")).read_text())
    back = tiny.logits_of(read(path, tiny.model_of(config)), tokens)
    with tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / "exact.gguf"
        write(exact, model, Type.F32)
        in_float = distance(peer.all_logits(exact, tokens, **peer.EXACT), expected)
    as_stored = distance(peer.all_logits(path, tokens, **peer.EXACT), expected)
    print(
        f"{name}: {path.stat().st_size / 1e3:.0f} kB; read back {distance(back, expected):.1e}, "
        f"llama.cpp {in_float:.1e} in F32, {as_stored:.1e} as stored"
    )
    assert distance(back, expected) < 1e-6, "the file does not hold the weights of the folder"


if __name__ == "__main__":
    for name in sys.argv[1:] or [name for name in tiny.MODELS if name not in tiny.DESCRIBED]:
        model = tiny.rebuilt(name)
        path = tiny.DATA / f"{name}.gguf"
        write(path, model, STORED[tiny.MODELS[name]["dtype"]])
        check(name, model, path)
