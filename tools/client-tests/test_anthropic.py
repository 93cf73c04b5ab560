"""The official client of Anthropic's API."""

import unittest

import anthropic

import served

ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


# The client has no argument for it any more.
GREEDY = {"temperature": 0}


def asked(words, **more):
    messages = [{"role": "user", "content": words}]
    return {"model": served.MODEL, "max_tokens": 24, "messages": messages, "extra_body": GREEDY, **more}


class Messages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = anthropic.Anthropic(base_url=served.address(), api_key="none", max_retries=0)

    def test_a_stream_is_the_whole_answer(self):
        whole = self.client.messages.create(**asked("Name a colour.", system="Be brief."))
        with self.client.messages.stream(**asked("Name a colour.", system="Be brief.")) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.stop_reason, whole.stop_reason)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        self.assertGreater(final.usage.cache_read_input_tokens, 0)

    def test_tokens_are_counted(self):
        counted = self.client.messages.count_tokens(model=served.MODEL, messages=asked("Name a colour.")["messages"])
        usage = self.client.messages.create(**asked("Name a colour.")).usage
        self.assertEqual(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_tools_are_called_and_their_results_read(self):
        request = asked("What is 2 and 3?", tools=[ADD], tool_choice={"type": "any"}) | {"max_tokens": 100}
        with self.client.messages.stream(**request) as stream:
            answer = stream.get_final_message()
        self.assertEqual(answer.stop_reason, "tool_use")
        call = next(block for block in answer.content if block.type == "tool_use")
        self.assertEqual((call.name, set(call.input)), ("add", {"a", "b"}))
        messages = request["messages"] + [
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "5"}]},
        ]
        last = self.client.messages.create(model=served.MODEL, max_tokens=8, messages=messages, tools=[ADD])
        self.assertTrue(last.content)

    def test_mistakes_are_the_clients_own_errors(self):
        with self.assertRaisesRegex(anthropic.NotFoundError, "no model 'other'"):
            self.client.messages.create(**{**asked("x"), "model": "other"})
        with self.assertRaisesRegex(anthropic.BadRequestError, "frobnicate"):
            self.client.messages.create(**{**asked("x"), "extra_body": {"frobnicate": 1}})

    def test_who_leaves_frees_the_pages(self):
        with self.client.messages.stream(**asked("Write a story.") | {"max_tokens": 2000}) as stream:
            next(iter(stream.text_stream))
        served.wait_until_free()
