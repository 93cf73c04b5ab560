"""Weights as they are published, from those of a model that computes the same: where `transformers` has no code for the
model, or for a part of it."""

import re

import torch
from safetensors.torch import load_file, save_file


def packed(weights, groups, name):
    """q, k and v of each layer in one matrix, `name`: those of a group of heads follow each other."""
    found = {}
    for key, weight in weights.items():
        if ".q_proj." in key:
            parts = [weights[key.replace("q_proj", part)].unflatten(0, (groups, -1)) for part in ("q_proj", "k_proj", "v_proj")]
            found[key.replace("q_proj", name)] = torch.cat(parts, 1).flatten(0, 1)
        elif not re.search(r"\.[kv]_proj\.", key):
            found[key] = weight
    return found


def rewrite(file, pack=None, split={}, copies={}, names={}):
    """Rewrites a safetensors file. `pack` is what `packed` wants, `split` has parts of names and, for what each is split
    into, another part and its rows, `copies` are beginnings of names and those of copies, `names` are parts of names and
    what they become."""
    weights = load_file(file)
    if pack:
        weights = packed(weights, *pack)
    for old, parts in split.items():
        for whole in [name for name in weights if old in name]:
            rows = weights.pop(whole).split(list(parts.values()))
            weights |= {whole.replace(old, new): weight for new, weight in zip(parts, rows)}
    for old, new in copies.items():
        weights |= {name.replace(old, new, 1): weight.clone() for name, weight in weights.items() if name.startswith(old)}
    for old, new in names.items():
        weights = {name.replace(old, new): weight for name, weight in weights.items()}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file, {"format": "pt"})
