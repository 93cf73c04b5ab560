"""Raw logits and tokens from llama.cpp."""

import llama_cpp
import numpy as np

EXACT = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}


def load(path, context, threads=1, **options):
    """A model on the CPU; prompts are processed in batches of at most 512 tokens."""
    return llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0,
        flash_attn=False, verbose=False, **options,
    )


def forget(model):
    """Starts a new sequence."""
    model.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)


def last_logits(model, tokens):
    """Appends tokens and returns the logits after the last of them, as computed: no sampler has touched them."""
    model.eval(tokens)
    row = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return np.ctypeslib.as_array(row, shape=(model.n_vocab(),)).copy()


def teacher_forced(model, prompt, generated):
    """The logits by which each of the given tokens would be chosen, computed in one batch, [generated, vocabulary]."""
    forget(model)
    if prompt[:-1]:
        model.eval(prompt[:-1])
    tokens = prompt[-1:] + generated[:-1]
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, len(prompt) - 1 + i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    status = llama_cpp.llama_decode(model.ctx, batch)
    llama_cpp.llama_batch_free(batch)
    assert status == 0, f"llama.cpp: {status}"
    rows = [llama_cpp.llama_get_logits_ith(model.ctx, i) for i in range(len(tokens))]
    return np.stack([np.ctypeslib.as_array(row, shape=(model.n_vocab(),)).copy() for row in rows])


def all_logits(path, tokens, **options):
    """Logits of every position, [tokens, vocabulary]."""
    model = load(path, len(tokens), logits_all=True, **options)
    model.eval(tokens)
    return model.scores[: len(tokens)].copy()
