#!/usr/bin/env python3
"""Tiny random models as Hugging Face folders, and their logits computed by `transformers` in float32.

Writes crates/basert-testkit/data/tiny/NAME/: the configuration and weights as `transformers` saves them, `expected.json`
and the logits it names. `tiny.py NAME...` makes only those.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn import Embedding
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

import published

DATA = Path(__file__).parents[2] / "crates/basert-testkit/data/tiny"
DESCRIPTIONS = Path(__file__).parent / "models"
VOCABULARY = 288
PROMPT = 48

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

QUERIES_AND_KEYS = ["q_proj", "k_proj", "qkv", "query", "c_attn", ".key.", "q_lin", "k_lin"]

# Models that compute hidden states and no logits, by `model_type`.
ENCODERS = [
    "bert", "camembert", "distilbert", "electra", "eurobert", "gte", "jina_embeddings_v3", "modernbert", "nomic_bert", "roberta",
    "xlm-roberta",
]

COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=512, bos_token_id=256, eos_token_id=257, pad_token_id=None,
)


def gemma3_v4(config):
    """The keys of transformers 4.50: a pattern instead of a list of layer types, two rotary bases side by side."""
    rope = config.pop("rope_parameters")
    for newer in ["layer_types", "_sliding_window_pattern", "use_bidirectional_attention"]:
        config.pop(newer)
    return v4(config) | {
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "rope_scaling": None,
        "sliding_window_pattern": 6,
    }


def llama_v4(config):
    """The keys of transformers 4: `rope_theta` and `rope_scaling` at the top level."""
    scaling = config.pop("rope_parameters")
    return v4(config) | {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}


def yarn(config, **magnitude):
    """The same for a context of four times the length, with queries and keys enlarged in one of two ways."""
    scaling = dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32)
    return config | {"rope_parameters": scaling | magnitude}


def patch(set={}, drop=()):
    """A variant with other values for some keys, which may be nested, and without others."""
    def merged(config, changes):
        return config | {
            key: merged(config[key], value) if isinstance(value, dict) and isinstance(config.get(key), dict) else value
            for key, value in changes.items()
        }
    return lambda config: {key: value for key, value in merged(config, set).items() if key not in drop}


def v4(config):
    """What every configuration had before transformers 5."""
    config["torch_dtype"] = config.pop("dtype")
    return config | {"transformers_version": "4.50.0"}


# Each model: its configuration, the type its weights are stored in, the largest shard, and further configurations for the
# same weights. A variant either changes keys only in form, and so has the logits of `config.json`, or has its own. Folders
# whose weights we do not read are without them: only the GGUF twin holds these.
MODELS = {
    "llama": dict(
        config=COMMON | dict(
            model_type="llama", num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters=dict(
                rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        dtype=torch.float32,
        shard="100KB",
        variants={"v4": llama_v4},
    ),
    "llama2": dict(
        config=COMMON | dict(
            model_type="llama", num_key_value_heads=4, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        ),
        dtype=torch.float16,
    ),
    "mistral": dict(
        config=COMMON | dict(
            model_type="mistral", num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
            sliding_window=16, rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        ),
        dtype=torch.bfloat16,
        variants={"no-window": lambda config: config | {"sliding_window": None}},
    ),
    "qwen2": dict(
        config=COMMON | dict(
            model_type="qwen2", num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        dtype=torch.bfloat16,
        variants={
            "windows": lambda config: config | {
                "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "yarn": lambda config: yarn(config, attention_factor=1.25),
            "yarn-mscale": lambda config: yarn(config, mscale=1.0, mscale_all_dim=0.5),
        },
    ),
    "qwen3": dict(
        config=COMMON | dict(
            model_type="qwen3", num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        dtype=torch.float16,
    ),
    "gemma3": dict(
        config=COMMON | dict(
            model_type="gemma3_text", num_hidden_layers=7, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            rms_norm_eps=1e-6, tie_word_embeddings=True, query_pre_attn_scalar=16, sliding_window=8,
            rope_parameters=dict(
                full_attention=dict(rope_type="default", rope_theta=1000000.0),
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            ),
        ),
        dtype=torch.bfloat16,
        variants={
            "v4": gemma3_v4,
            "query-scalar": lambda config: config | {"query_pre_attn_scalar": 24},
            "rope-linear": lambda config: config | {
                "rope_parameters": config["rope_parameters"] | {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}
                }
            },
        },
    ),
    "stablelm": dict(
        config=COMMON | dict(
            model_type="stablelm", num_key_value_heads=2, layer_norm_eps=1e-5, use_qkv_bias=True,
            tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
        ),
        dtype=torch.float16,
    ),
    "qwen3moe": dict(
        config=COMMON | dict(
            model_type="qwen3_moe", num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6, tie_word_embeddings=False,
            num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        dtype=torch.bfloat16,
        variants={"v4": llama_v4},
    ),
    "gpt-oss": dict(
        config=COMMON | dict(
            model_type="gpt_oss", num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
            intermediate_size=32, num_local_experts=8, num_experts_per_tok=2, sliding_window=16, swiglu_limit=7.0,
            rope_parameters=dict(
                rope_type="yarn", rope_theta=150000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                original_max_position_embeddings=64,
            ),
        ),
        dtype=torch.bfloat16,
    ),
}


def with_common(config):
    """A described configuration, in a multimodal model that of its text part, on top of what all have in common."""
    if "text_config" in config:
        return config | {"text_config": COMMON | config["text_config"]}
    return COMMON | config


# Further models are described in files; see `models/README.md`.
DESCRIBED = {file.stem: json.loads(file.read_text()) for file in sorted(DESCRIPTIONS.glob("*.json"))}
for name, described in DESCRIBED.items():
    MODELS[name] = described | {
        "config": with_common(described["config"]),
        "dtype": getattr(torch, described["dtype"]),
        "variants": {variant: patch(**change) for variant, change in described.get("variants", {}).items()},
    }


def random_for(*name):
    """A generator that depends on a name alone, not on what was drawn before."""
    return np.random.default_rng(zlib.crc32("/".join(name).encode()))


def fill(model, seed):
    """Random weights that make lively logits: activations of about unit size, attention that has favourites.

    Projections keep the variance of their input, those of queries and keys enlarge it. Norms vary about the value that
    they start with; embeddings and the output are such that logits have a deviation of about 2.
    """
    hidden = model.config.get_text_config().hidden_size
    output = model.get_output_embeddings()
    tables = {module.weight for module in [*model.modules(), output] if isinstance(module, Embedding)}
    if output is not None:
        tables.add(output.weight)
    saved = model.state_dict()
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if name not in saved or weight.ndim == 0:
            continue
        values = random_for(seed, name).standard_normal(tuple(weight.shape))
        if name.endswith("bias"):
            values *= 0.5
        elif name.endswith("sinks"):
            pass
        elif name.endswith("A_log"):
            # Some heads remember for a few tokens and some for dozens.
            values -= 1.5
        elif weight.ndim < 2:
            # Nemotron adds 1 to its weights, and starts with 1 all the same.
            values = 0.3 * values + (0 if model.config.model_type == "nemotron" else round(float(weight.data.mean())))
        elif weight in tables:
            values *= 2 / hidden**0.5
        else:
            # Those of experts are products with matrices as they are in some models, and with transposed ones elsewhere.
            transposed = weight.ndim == 3 and model.config.model_type in ("gpt_oss", "llama4_text")
            inputs = weight.shape[1 if weight.ndim == 2 or transposed else 2]
            values *= (1.5 if any(part in name for part in QUERIES_AND_KEYS) else 1) / inputs**0.5
        weight.data = torch.from_numpy(values.astype(np.float32))
    model.tie_weights()


def seed_of(name):
    """What the random numbers of a model depend on: its name, or another text where that makes a router's choice close."""
    return MODELS[name].get("seed", name)


def prompt(name):
    """Random token ids, none of them special."""
    return random_for(seed_of(name), "prompt").integers(0, 256, PROMPT).tolist()


@torch.no_grad()
def logits_of(model, tokens):
    """Logits of every position in float32, [tokens, vocabulary]; of an encoder its last hidden states, [tokens, width]."""
    model = model.float().eval()
    model.set_attn_implementation("eager")
    tokens = torch.tensor([tokens])
    if model.get_output_embeddings() is None:
        return model(tokens).last_hidden_state[0].numpy()
    return model(tokens, use_cache=False).logits[0].numpy()


def write_logits(path, logits):
    """Rows of little-endian float32 without a header."""
    path.write_bytes(np.ascontiguousarray(logits, dtype="<f4").tobytes())


def kind_of(config):
    """What makes models of a configuration."""
    if config.model_type in ENCODERS or getattr(config, "use_bidirectional_attention", False):
        return AutoModel
    known = AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if type(config) in known and not hasattr(config, "vision_config") else AutoModelForImageTextToText


def model_of(config):
    """A model of a configuration given as a dictionary, its weights not yet meaningful."""
    config = AutoConfig.for_model(**config)
    return kind_of(config).from_config(config, dtype=torch.float32, attn_implementation="eager")


def load(folder, config="config.json"):
    """The model of a folder in float32, under one of its configurations."""
    config = AutoConfig.from_pretrained(folder / config)
    return kind_of(config).from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager")


def save(name, folder, shard="50GB"):
    """The model as a folder, without what only generation needs: named as published, or, if `fused`, as in transformers."""
    as_published = not MODELS[name].get("fused", False)
    rebuilt(name).save_pretrained(folder, max_shard_size=shard, save_original_format=as_published)
    (folder / "generation_config.json").unlink(missing_ok=True)


def publish(name, folder):
    """Rewrites the folder as models are published where `transformers` saves, or knows, only another form."""
    change = dict(MODELS[name].get("published", {}))
    weights = {key: change.pop(key) for key in ("pack", "split", "copies", "names") if key in change}
    if change:
        file = folder / "config.json"
        file.write_text(json.dumps(patch(**change)(json.loads(file.read_text())), indent=2) + "\n")
    if weights:
        published.rewrite(folder / "model.safetensors", **weights)
    if "head" in MODELS[name]:
        import heads
        heads.add_to(name, folder)


def rebuilt(name):
    """The model as it is saved, from its seed."""
    model = model_of(MODELS[name]["config"])
    fill(model, seed_of(name))
    return model.to(MODELS[name]["dtype"])


def make(name, shard="50GB", variants={}, weights=True, **_):
    """Writes a folder with everything in it."""
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    save(name, folder, shard)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)

    tokens = prompt(name)
    logits = logits_of(load(folder), tokens)
    write_logits(folder / "logits.f32", logits)
    cases = [{"config": "config.json", "logits": "logits.f32"}]
    for variant, change in variants.items():
        file = f"config-{variant}.json"
        changed = change(json.loads((folder / "config.json").read_text()))
        (folder / file).write_text(json.dumps(changed, indent=2) + "\n")
        theirs = logits_of(load(folder, file), tokens)
        different = float(np.abs(theirs - logits).max())
        print(f"{name}: {file} moves logits by {different:.3g}")
        if different == 0:
            cases.append({"config": file, "logits": "logits.f32"})
        else:
            write_logits(folder / f"logits-{variant}.f32", theirs)
            cases.append({"config": file, "logits": f"logits-{variant}.f32"})
    publish(name, folder)
    if not weights:
        for file in folder.glob("*.safetensors"):
            file.unlink()
    expected = {"prompt": tokens, "vocabulary": VOCABULARY, "cases": cases}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, logits have deviation {logits.std():.2f} and maximum {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        make(name, **MODELS[name])
