#!/usr/bin/env python3
"""Hidden states of the tiny models, computed by `transformers` in float32: what follows the last norm.

Writes crates/basert-testkit/data/tiny/NAME/states.f32 for the models that `tiny.py` made, and nothing else; the weights
are rebuilt from their seeds. `hidden.py NAME...` makes only those.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import tiny


@torch.no_grad()
def states_of(model, tokens):
    """The last hidden state of every position in float32, [tokens, width], and the logits."""
    model = model.float().eval()
    model.set_attn_implementation("eager")
    tokens = torch.tensor([tokens])
    decoder = model.model if model.base_model is model else model.base_model
    states = decoder(tokens, use_cache=False).last_hidden_state
    return states[0].numpy(), model(tokens, use_cache=False).logits[0].numpy()


for name in sys.argv[1:] or tiny.MODELS:
    folder = tiny.DATA / name
    tokens = json.loads((folder / "expected.json").read_text())["prompt"]
    # As it is saved and loaded, like tiny.py: what is not saved, such as frequencies, stays in float32.
    with tempfile.TemporaryDirectory() as saved:
        tiny.save(name, Path(saved))
        model = tiny.load(Path(saved))
    if model.get_output_embeddings() is None:
        # What tiny.py wrote for logits are its hidden states.
        continue
    states, logits = states_of(model, tokens)
    # The weights are the same: their logits are.
    expected = np.fromfile(folder / "logits.f32", dtype="<f4").reshape(logits.shape)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"{name}: {states.shape}, logits differ by {error:.1e} from those of tiny.py")
    assert error < 1e-5
    tiny.write_logits(folder / "states.f32", states)
