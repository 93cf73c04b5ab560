"""The command and library `llm`, with models that its users list in a file."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import llm
import openai

import served
from test_openai import Colour


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class Chats(unittest.TestCase):
    responses = False

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        os.environ["LLM_USER_PATH"] = folder.name
        able = {"supports_schema": True, "supports_tools": True, "responses": cls.responses}
        about = {"model_id": "served", "model_name": served.MODEL, "api_base": f"{served.address()}/v1", **able}
        # JSON is YAML.
        (pathlib.Path(folder.name) / "extra-openai-models.yaml").write_text(json.dumps([about]))
        cls.model = llm.get_model("served")
        cls.model.key = "none"

    def test_a_stream_is_the_whole_answer(self):
        whole = self.model.prompt("Name a colour.", temperature=0, max_tokens=16, stream=False)
        streamed = self.model.prompt("Name a colour.", temperature=0, max_tokens=16)
        self.assertEqual("".join(streamed), whole.text())

    def test_tools_are_offered_and_their_results_read(self):
        conversation = self.model.conversation(tools=[add])
        self.assertTrue(conversation.prompt("What is 2 and 3?", temperature=0, max_tokens=16).text())
        result = llm.ToolResult(name="add", output="5", tool_call_id="call_1")
        self.assertTrue(conversation.prompt(tool_results=[result], temperature=0, max_tokens=16).text())

    def test_an_answer_has_the_schema_that_was_asked_for(self):
        answer = self.model.prompt("Describe a colour.", schema=Colour, temperature=0, max_tokens=200)
        Colour.model_validate_json(answer.text())

    def test_mistakes_are_the_clients_own_errors(self):
        with self.assertRaisesRegex(openai.BadRequestError, "maximum context length is 4096 tokens"):
            self.model.prompt("long " * 5000).text()

    def test_who_leaves_frees_the_pages(self):
        command = [sys.executable, "-m", "llm", "-m", "served", "--key", "none", "--no-log", "Write a very long story."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
            self.assertTrue(running.stdout.read(1))
            running.kill()
        served.wait_until_free()


class Responses(Chats):
    responses = True
