"""Pydantic AI, whose agents speak each of the APIs."""

import unittest

import anthropic
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

import served
from test_openai import Colour


class CallFirst(AbstractCapability):
    """Has a tool called first, and an answer given then."""

    def get_model_settings(self):
        return lambda context: {"tool_choice": "required" if context.run_step == 1 else "none", "parallel_tool_calls": False}


class Chats(unittest.IsolatedAsyncioTestCase):
    def model(self):
        provider = OpenAIProvider(base_url=f"{served.address()}/v1", api_key="none")
        return OpenAIChatModel(served.MODEL, provider=provider)

    def agent(self, **more):
        return Agent(self.model(), model_settings={"temperature": 0, "max_tokens": 200}, retries=0, **more)

    async def test_a_stream_is_the_whole_answer(self):
        async with self.agent().run_stream("Name a colour.") as result:
            streamed = await result.get_output()
        self.assertEqual(streamed, (await self.agent().run("Name a colour.")).output)

    async def test_tools_are_called_and_their_results_read(self):
        agent, given = self.agent(capabilities=[CallFirst()]), []

        @agent.tool_plain
        def add(a: int, b: int) -> int:
            """Adds two numbers."""
            given.append((a, b))
            return a + b

        self.assertTrue((await agent.run("What is 2 and 3?")).output)
        self.assertEqual(len(given), 1)

    async def test_an_answer_has_the_schema_that_was_asked_for(self):
        for output in [ToolOutput(Colour), NativeOutput(Colour)]:
            result = await self.agent(output_type=output).run("Describe a colour.")
            self.assertIsInstance(result.output, Colour)

    async def test_mistakes_are_the_clients_own_errors(self):
        with self.assertRaisesRegex(ModelHTTPError, "frobnicate"):
            await self.agent().run("x", model_settings={"extra_body": {"frobnicate": 1}})

    async def test_who_leaves_frees_the_pages(self):
        async with self.agent().run_stream("Write a very long story.", model_settings={"max_tokens": 3000}) as result:
            await anext(aiter(result.stream_text(debounce_by=None)))
        served.wait_until_free()


class Responses(Chats):
    def model(self):
        return OpenAIResponsesModel(served.MODEL, provider=super().model()._provider)


class Messages(Chats):
    def model(self):
        client = anthropic.AsyncAnthropic(base_url=served.address(), api_key="none", max_retries=0)
        self.addAsyncCleanup(client.close)
        # It knows Anthropic's own models only.
        able = ModelProfile(supports_json_schema_output=True)
        return AnthropicModel(served.MODEL, provider=AnthropicProvider(anthropic_client=client), profile=able)
