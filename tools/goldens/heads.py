#!/usr/bin/env python3
"""Heads that predict a further token (multi-token prediction) of tiny models, and their logits.

`transformers` drops these heads when it loads a model, so each is put together here from modules of `transformers`, as vLLM
and SGLang compute it: the embedding of a token and the hidden state of the token before it, after the model's last norm, are
normed, concatenated in this order, projected, and go through one layer with attention, a norm, and the model's output. What
follows the head's norm takes the place of the hidden state for the token after its prediction.

`tiny.py` adds the weights to the folders of the models that `models/` describes with a `head`. `heads.py NAME...` writes
head.f32 beside them: a row for each token of the prompt from the second on, and one more, which follows the likeliest token of
the last of them.
"""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import Linear, Module, ModuleList

import tiny

# How the tensors of a head are called; `layer` is what names of its layer begin with.
NAMES = {
    "mtp": dict(
        fc="mtp.fc", embedding="mtp.pre_fc_norm_embedding", hidden="mtp.pre_fc_norm_hidden", norm="mtp.norm", layer="mtp.layers.0"
    ),
    "nextn": dict(fc="eh_proj", embedding="enorm", hidden="hnorm", norm="shared_head.norm", layer=""),
}


def text_of(model):
    """The part of a model that has its layers."""
    return next(part for part in model.modules() if hasattr(part, "layers") and hasattr(part, "embed_tokens"))


class Head(Module):
    """The head of a model, with random weights."""

    def __init__(self, name, model):
        super().__init__()
        text = text_of(model)
        width = text.config.hidden_size
        types = getattr(text.config, "layer_types", None)
        at = types.index("full_attention") if types else len(text.layers) - 1
        self.layer = copy.deepcopy(text.layers[at])
        self.fc = Linear(2 * width, width, bias=False)
        self.embedding, self.hidden, self.norm = (copy.deepcopy(text.norm) for _ in range(3))
        with torch.no_grad():
            for key, weight in self.state_dict().items():
                values = torch.from_numpy(tiny.random_for(tiny.seed_of(name), f"head.{key}").standard_normal(tuple(weight.shape)))
                if key.endswith("bias"):
                    values *= 0.5
                elif weight.ndim < 2:
                    # About the value that they start with, which is that of the model's, rounded.
                    values = 0.3 * values + round(float(weight.mean()))
                else:
                    values *= (1.5 if any(part in key for part in tiny.QUERIES_AND_KEYS) else 1) / weight.shape[-1] ** 0.5
                weight.copy_(values.to(tiny.MODELS[name]["dtype"]))

    def published(self, name, layers):
        """Its tensors under their names in published models."""
        names, fused = NAMES[tiny.MODELS[name]["head"]], tiny.MODELS[name].get("fused", False)
        before = f"model.layers.{layers}."
        tensors = {}
        for key, weight in self.state_dict().items():
            part, rest = key.split(".", 1)
            if part != "layer":
                key = f"{names[part]}.{rest}" if names["layer"] else f"{before}{names[part]}.{rest}"
                tensors[key] = weight
                continue
            start = f"{names['layer']}." if names["layer"] else before
            if ".experts." in rest and not fused:
                of_one = {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]}[rest.rsplit(".", 1)[1]]
                for expert, matrix in enumerate(weight):
                    for own, rows in zip(of_one, matrix.chunk(len(of_one))):
                        tensors[f"{start}mlp.experts.{expert}.{own}.weight"] = rows
            else:
                tensors[start + rest] = weight
        return {key: weight.to(tiny.MODELS[name]["dtype"]).contiguous() for key, weight in tensors.items()}

    @torch.no_grad()
    def logits(self, model, tokens):
        """Those that follow each token but the first, and those that follow the likeliest token of the last of them."""
        text, output = text_of(model), model.get_output_embeddings()
        hidden = text(torch.tensor([tokens]), use_cache=False).last_hidden_state[:, :-1]
        body = copy.deepcopy(text)
        body.layers, body.norm = ModuleList([self.layer]), self.norm
        body.config.num_hidden_layers = 1
        if getattr(body.config, "layer_types", None):
            body.config.layer_types = ["full_attention"]
        rows = text.embed_tokens(torch.tensor([tokens[1:]]))

        def states():
            x = self.fc(torch.cat([self.embedding(rows), self.hidden(hidden)], -1))
            return body(inputs_embeds=x, use_cache=False).last_hidden_state

        first = states()
        likeliest = output(first[:, -1]).argmax(-1)
        hidden, rows = torch.cat([hidden, first[:, -1:]], 1), torch.cat([rows, text.embed_tokens(likeliest)[:, None]], 1)
        both = states()
        assert torch.allclose(both[:, :-1], first, atol=1e-5)
        return output(both)[0].numpy()


def add_to(name, folder):
    """Adds the weights of its head to the folder of a model."""
    model = tiny.rebuilt(name)
    file = folder / "model.safetensors"
    weights = load_file(file) | Head(name, model).published(name, len(text_of(model).layers))
    save_file(weights, file, {"format": "pt"})


if __name__ == "__main__":
    for name in sys.argv[1:] or [name for name in tiny.MODELS if "head" in tiny.MODELS[name]]:
        # As it is saved and loaded, like hidden.py.
        with tempfile.TemporaryDirectory() as saved:
            tiny.save(name, Path(saved))
            model = tiny.load(Path(saved)).float().eval()
        model.set_attn_implementation("eager")
        logits = Head(name, tiny.rebuilt(name)).float().eval().logits(model, tiny.prompt(name))
        tiny.write_logits(tiny.DATA / name / "head.f32", logits)
        print(f"{name}: {logits.shape}, with deviation {logits.std():.2f}")
