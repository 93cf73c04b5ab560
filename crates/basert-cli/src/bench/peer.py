# Keeps a model open in llama.cpp, and measures what `basert bench` asks for: a JSON object a line on stdin, one on
# stdout for each. Between requests it does nothing.

import ctypes
import json
import os
import site
import sys
import time

channel = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # What libraries print is no answer.

sys.path.append(site.getusersitepackages())  # Isolated, Python leaves them out.


def answer(**fields):
    channel.write(json.dumps(fields) + "\n")
    channel.flush()


try:
    import llama_cpp
except Exception as error:
    # It is not there, or cannot be loaded.
    answer(**{"missing" if getattr(error, "name", "") == "llama_cpp" else "error": str(error)})
    sys.exit()

silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))


class Model:
    def __init__(self, request):
        self.threads = request["threads"]
        parameters = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(request["model"].encode(), parameters)
        if not self.model:
            raise RuntimeError("llama.cpp does not load this model")

    def vocabulary(self):
        return llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))


class Test:
    """Timelines of which the first `depth` tokens are context; the rest is measured, at once or token by token."""

    def __init__(self, model, request):
        self.at_once, self.depth = request["at_once"], request["depth"]
        self.timelines = request["timelines"]
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = sum(len(timeline) for timeline in self.timelines) + 64
        parameters.n_seq_max = len(self.timelines)
        parameters.n_threads = parameters.n_threads_batch = model.threads
        self.context = llama_cpp.llama_init_from_model(model.model, parameters)
        if not self.context:
            raise RuntimeError(f"llama.cpp does not make a context of {parameters.n_ctx} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.most = llama_cpp.llama_n_batch(self.context)
        self.batch = llama_cpp.llama_batch_init(self.most, 0, 1)
        self.fill()

    def fill(self):
        llama_cpp.llama_memory_clear(self.memory, True)
        for sequence, timeline in enumerate(self.timelines):
            self.read(sequence, timeline, 0, self.depth)

    def decode(self, rows):
        """Computes rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(rows)
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode failed with code {code}")
        llama_cpp.llama_synchronize(self.context)

    def read(self, sequence, timeline, start, end):
        for at in range(start, end, self.most):
            stop = min(at + self.most, end)
            self.decode([(timeline[i], i, sequence, i + 1 == end) for i in range(at, stop)])

    def measure(self):
        start = time.perf_counter()
        if self.at_once:
            for sequence, timeline in enumerate(self.timelines):
                self.read(sequence, timeline, self.depth, len(timeline))
        else:
            for i in range(self.depth, len(self.timelines[0])):
                self.decode([(timeline[i], i, sequence, True) for sequence, timeline in enumerate(self.timelines)])
        seconds = time.perf_counter() - start
        removed = [
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, self.depth, -1)
            for sequence in range(len(self.timelines))
        ]
        if not all(removed):
            self.fill()
        return seconds

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)


model = test = None
answer(engine="llama-cpp-python " + llama_cpp.__version__)
for line in sys.stdin:
    request = json.loads(line)
    try:
        if "model" in request:
            model = Model(request)
            answer(vocabulary=model.vocabulary())
        elif "timelines" in request:
            if test:
                test.close()
            test = Test(model, request)
            answer(ready=True)
        else:
            answer(seconds=test.measure())
    except Exception as error:
        answer(error=str(error))
