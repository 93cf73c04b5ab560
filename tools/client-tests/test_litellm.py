"""LiteLLM, which speaks to each API in its own way."""

import asyncio
import json
import os
import unittest

# Its prices of models would come from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

import served
from test_openai import ADD, Colour

QUESTION = [{"role": "user", "content": "What is 2 and 3?"}]


class AsOpenAI(unittest.TestCase):
    provider, path = "openai", "/v1"

    def request(self, **more):
        base = {"api_base": served.address() + self.path, "api_key": "none", "num_retries": 0, "messages": QUESTION}
        return {"model": f"{self.provider}/{served.MODEL}", "temperature": 0, **base, **more}

    def test_a_stream_is_the_whole_answer(self):
        whole = litellm.completion(**self.request(max_tokens=16))
        chunks = list(litellm.completion(**self.request(max_tokens=16), stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.total_tokens, whole.usage.total_tokens)

    def test_tools_are_called_and_their_results_read(self):
        answer = litellm.completion(**self.request(tools=[ADD], tool_choice="required", max_tokens=100))
        call = answer.choices[0].message.tool_calls[0]
        self.assertEqual((call.function.name, set(json.loads(call.function.arguments))), ("add", {"a", "b"}))
        messages = [*QUESTION, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
        last = litellm.completion(**self.request(messages=messages, tools=[ADD], max_tokens=8))
        self.assertGreater(last.usage.completion_tokens, 0)

    def test_an_answer_has_the_schema_that_was_asked_for(self):
        answer = litellm.completion(**self.request(response_format=Colour, max_tokens=200))
        Colour.model_validate_json(answer.choices[0].message.content)

    def test_mistakes_are_the_clients_own_errors(self):
        with self.assertRaisesRegex(litellm.BadRequestError, "frobnicate"):
            litellm.completion(**self.request(max_tokens=1, frobnicate=1))
        with self.assertRaisesRegex(litellm.NotFoundError, "no model 'other'"):
            litellm.completion(**self.request(model=f"{self.provider}/other", max_tokens=1))

    def test_who_leaves_frees_the_pages(self):
        async def leave():
            messages = [{"role": "user", "content": "Write a very long story."}]
            stream = await litellm.acompletion(**self.request(messages=messages, max_tokens=3000), stream=True)
            await anext(aiter(stream))
            await stream.aclose()

        asyncio.run(leave())
        served.wait_until_free()


class AsAnthropic(AsOpenAI):
    provider, path = "anthropic", ""
