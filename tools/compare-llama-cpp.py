#!/usr/bin/env python3
"""Measures basert beside llama.cpp: the same file, the same threads, in turn, in one run.

    tools/compare-llama-cpp.py BASERT MODEL [--rounds 3] [--prompt 512] [--generate 128] [--threads 2]

BASERT is the release build of the command. It needs `llama-cpp-python`, built with CMAKE_ARGS="-DGGML_NATIVE=ON".
Absolute speeds drift on shared machines: quote the ratios.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import time

import llama_cpp


def llama(arguments):
    """Tokens a second of prefill and decode, without tokenizer or sampler."""
    model_parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(arguments.model.encode(), model_parameters)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = arguments.prompt + arguments.generate + 64
    parameters.n_batch = parameters.n_ubatch = 512
    parameters.n_threads = parameters.n_threads_batch = arguments.threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode(tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
        llama_cpp.llama_get_logits_ith(context, -1)

    def clear():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    prompt = [(i * 7919 + 11) % (vocabulary - 1000) + 500 for i in range(arguments.prompt)]
    decode(prompt[:32])
    clear()
    start = time.perf_counter()
    decode(prompt)
    prefill = arguments.prompt / (time.perf_counter() - start)
    clear()
    decode(prompt[:1])
    start = time.perf_counter()
    for i in range(arguments.generate):
        decode([prompt[i % len(prompt)]])
    generate = arguments.generate / (time.perf_counter() - start)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return prefill, generate


def basert(arguments):
    """The same by `basert bench`."""
    command = [arguments.basert, "bench", arguments.model, "-p", str(arguments.prompt), "-n", str(arguments.generate)]
    command += ["-r", "1", "-w", "1", "--threads", str(arguments.threads), "--json"]
    tests = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["tests"]
    by_kind = {test["kind"]: test["tokens_per_second"] for test in tests}
    return by_kind["prefill"], by_kind["decode"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("basert")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    rounds = [(basert(arguments), llama(arguments)) for _ in range(arguments.rounds)]
    for i, name in enumerate([f"prefill {arguments.prompt}", f"decode {arguments.generate}"]):
        ours, theirs = [a[i] for a, _ in rounds], [b[i] for _, b in rounds]
        ratios = [a / b for a, b in zip(ours, theirs)]
        print(
            f"{name}: basert {statistics.median(ours):.1f}, llama.cpp {statistics.median(theirs):.1f} tokens/s, "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


main()
