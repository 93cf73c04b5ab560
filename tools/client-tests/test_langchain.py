"""LangChain's client of OpenAI's APIs: of chats, and of responses."""

import unittest

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

import served
from test_openai import Colour

QUESTION = HumanMessage("What is 2 and 3?")


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class Chats(unittest.TestCase):
    responses = False

    def model(self, **more):
        about = {"base_url": f"{served.address()}/v1", "api_key": "none", "model": served.MODEL, "temperature": 0}
        return ChatOpenAI(**about, max_retries=0, use_responses_api=self.responses, **more)

    def test_a_stream_is_the_whole_answer(self):
        model = self.model(max_tokens=16, stream_usage=True)
        whole = model.invoke("Name a colour.")
        joined, *parts = model.stream("Name a colour.")
        for part in parts:
            joined += part
        self.assertEqual(joined.text, whole.text)
        self.assertEqual(joined.usage_metadata["total_tokens"], whole.usage_metadata["total_tokens"])

    def test_tools_are_called_and_their_results_read(self):
        answer = self.model(max_tokens=100).bind_tools([add], tool_choice="any").invoke([QUESTION])
        call = answer.tool_calls[0]
        self.assertEqual((call["name"], set(call["args"])), ("add", {"a", "b"}))
        said = [QUESTION, answer, *(ToolMessage("5", tool_call_id=call["id"]) for call in answer.tool_calls)]
        last = self.model(max_tokens=8).bind_tools([add], tool_choice="none").invoke(said)
        self.assertGreater(last.usage_metadata["output_tokens"], 0)

    def test_an_answer_has_the_schema_that_was_asked_for(self):
        for method in ["json_schema", "function_calling"]:
            model = self.model(max_tokens=200).with_structured_output(Colour, method=method)
            self.assertIsInstance(model.invoke("Describe a colour."), Colour)

    def test_mistakes_are_the_clients_own_errors(self):
        with self.assertRaisesRegex(openai.BadRequestError, "frobnicate"):
            self.model().invoke("x", extra_body={"frobnicate": 1})

    def test_who_leaves_frees_the_pages(self):
        stream = self.model(max_tokens=3000).stream("Write a very long story.")
        next(stream)
        stream.close()
        served.wait_until_free()


class Responses(Chats):
    responses = True
