"""A server on a free port, for as long as the tests run."""

import atexit
import functools
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.request

MODEL = "SmolLM2-135M-Instruct.Q4_1"


def model_path():
    folder = pathlib.Path(os.environ.get("BASERT_TEST_DATA", pathlib.Path.home() / ".cache/basert-test"))
    found = [path for path in (folder / f"{MODEL}.gguf", folder / "models" / f"{MODEL}.gguf") if path.exists()]
    if not found:
        raise SystemExit(f"{MODEL}.gguf is not in {folder}; run tools/fetch-test-data first")
    return found[0]


@functools.cache
def address():
    """Starts the server, and returns where it is."""
    command = [os.environ["BASERT"], "serve", str(model_path()), "--port", "0", "--device", "cpu", "--log", "off"]
    server = subprocess.Popen([*command, "--max-context", "4096", "--kv-memory", "1024"], stderr=subprocess.PIPE, text=True)

    def stop():
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=30)
        server.stderr.close()
        assert code == 0, f"the server ended with {code}"

    atexit.register(stop)
    for line in server.stderr:
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise RuntimeError("the server did not begin")


def metric(name):
    """A number that the server reports for the model."""
    text = urllib.request.urlopen(f"{address()}/metrics").read().decode()
    found = re.search(rf'^{name}{{model="[^"]*"}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_until_held():
    """Waits until a request holds pages: metrics are set after a step, whose first tokens may be read before."""
    began = time.monotonic()
    while metric("basert_kv_pages_held") == 0:
        assert time.monotonic() - began < 10, "a request that is being answered holds no pages"
        time.sleep(0.02)


def wait_until_free():
    """Waits until no request holds pages, as when those who left are forgotten."""
    began = time.monotonic()
    while metric("basert_kv_pages_held") > 0:
        assert time.monotonic() - began < 60, "pages are held that nobody needs"
        time.sleep(0.02)
