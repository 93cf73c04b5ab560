"""The official Node clients, whose tests are in `node`."""

import os
import pathlib
import subprocess
import unittest

import served


class Node(unittest.TestCase):
    def run_tests(self, name):
        environment = {**os.environ, "BASERT_URL": served.address(), "BASERT_MODEL": served.MODEL}
        file = pathlib.Path(__file__).parent / "node" / f"{name}.test.mjs"
        ran = subprocess.run(["node", "--test", file], env=environment, stdout=subprocess.PIPE, text=True)
        self.assertEqual(ran.returncode, 0, ran.stdout)
        served.wait_until_free()

    def test_openai(self):
        self.run_tests("openai")

    def test_anthropic(self):
        self.run_tests("anthropic")
