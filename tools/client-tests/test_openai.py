"""The official client of OpenAI's API."""

import concurrent.futures
import json
import unittest

import openai
import pydantic

import served

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


class Colour(pydantic.BaseModel, extra="forbid"):
    name: str
    red: int
    warm: bool


def asked(words, **more):
    return {"model": served.MODEL, "messages": [{"role": "user", "content": words}], "temperature": 0, **more}


class Chat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = openai.OpenAI(base_url=f"{served.address()}/v1", api_key="none", max_retries=0)
        cls.create = cls.client.chat.completions.create

    def test_a_stream_is_the_whole_answer(self):
        whole = self.create(**asked("Name three colours.", max_completion_tokens=24))
        options = {"include_usage": True}
        chunks = list(self.create(**asked("Name three colours.", max_completion_tokens=24), stream=True, stream_options=options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertGreater(chunks[-1].usage.prompt_tokens_details.cached_tokens, 0)

    def test_the_next_turn_goes_on_from_the_last_one(self):
        messages = asked("Tell me about the sea in one sentence.", max_completion_tokens=200)["messages"]
        first = self.create(model=served.MODEL, messages=messages, temperature=0, max_completion_tokens=200)
        messages += [first.choices[0].message, {"role": "user", "content": "And the sky?"}]
        second = self.create(model=served.MODEL, messages=messages, temperature=0, max_completion_tokens=8)
        cached = second.usage.prompt_tokens_details.cached_tokens
        self.assertEqual(first.choices[0].finish_reason, "stop")
        # All but what the template writes between the turns.
        self.assertGreaterEqual(cached, first.usage.total_tokens - 2)

    def test_several_answers_stops_and_logprobs(self):
        answer = self.create(**asked("Count to ten.", n=2, max_tokens=8, stop=["\n"], logprobs=True, top_logprobs=2))
        self.assertEqual(answer.choices[0].message.content, answer.choices[1].message.content)
        self.assertNotIn("\n", answer.choices[0].message.content)
        self.assertEqual(len(answer.choices[0].logprobs.content[0].top_logprobs), 2)

    def test_a_tool_that_has_to_be_called_is(self):
        for choice in ["required", {"type": "function", "function": {"name": "add"}}]:
            answer = self.create(**asked("What is 2 and 3?", tools=[ADD], tool_choice=choice, max_tokens=100))
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            call = answer.choices[0].message.tool_calls[0]
            self.assertEqual(call.function.name, "add")
            arguments = json.loads(call.function.arguments)
            self.assertEqual({name: type(value) for name, value in arguments.items()}, {"a": int, "b": int})
            with self.client.chat.completions.stream(
                **asked("What is 2 and 3?", tools=[ADD], tool_choice=choice, max_tokens=100)
            ) as stream:
                streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
            self.assertEqual(streamed.function.arguments, call.function.arguments)
            # Its result leads to a text.
            messages = asked("What is 2 and 3?")["messages"] + [
                answer.choices[0].message,
                {"role": "tool", "tool_call_id": call.id, "content": "5"},
            ]
            last = self.create(model=served.MODEL, messages=messages, tools=[ADD], tool_choice="none", max_tokens=8)
            self.assertTrue(last.choices[0].message.content)

    def test_an_answer_has_the_schema_that_was_asked_for(self):
        answer = self.client.chat.completions.parse(**asked("Describe a colour.", max_tokens=200), response_format=Colour)
        self.assertIsInstance(answer.choices[0].message.parsed, Colour)
        answer = self.create(**asked("Describe a colour as JSON.", max_tokens=200), response_format={"type": "json_object"})
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_an_answer_calls_tools_or_has_a_schema(self):
        strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
        answers = [
            self.client.chat.completions.parse(
                **asked("What is 2 and 3?", max_tokens=200) | {"temperature": 1}, tools=[strict], response_format=Colour, seed=seed
            ).choices[0].message
            for seed in range(8)
        ]
        for answer in answers:
            if answer.tool_calls:
                self.assertEqual(set(answer.tool_calls[0].function.parsed_arguments), {"a", "b"})
            else:
                self.assertIsInstance(answer.parsed, Colour)
        self.assertEqual({bool(answer.tool_calls) for answer in answers}, {False, True})

    def test_mistakes_are_the_clients_own_errors(self):
        with self.assertRaisesRegex(openai.NotFoundError, "no model 'other'"):
            self.create(**{**asked("x"), "model": "other"})
        with self.assertRaisesRegex(openai.BadRequestError, "frobnicate") as caught:
            self.create(**asked("x"), extra_body={"frobnicate": 1})
        self.assertEqual(caught.exception.param, "frobnicate")
        with self.assertRaisesRegex(openai.BadRequestError, "maximum context length is 4096 tokens") as caught:
            self.create(**asked("long " * 5000))
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        schema = {"name": "x", "schema": {"type": "nonsense"}}
        with self.assertRaises(openai.BadRequestError):
            self.create(**asked("x"), response_format={"type": "json_schema", "json_schema": schema})

    def test_who_leaves_frees_the_pages(self):
        stream = self.create(**asked("Write a very long story."), stream=True, extra_body={"ignore_eos": True})
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        served.wait_until_held()
        stream.close()
        served.wait_until_free()

    def test_many_at_once_get_what_each_would_get_alone(self):
        words = [f"Say something about the number {i}." for i in range(6)]
        answer = lambda text: self.create(**asked(text, max_tokens=12)).choices[0].message.content
        alone = [answer(text) for text in words]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            self.assertEqual(list(pool.map(answer, words)), alone)

    def test_text_is_continued(self):
        answer = self.client.completions.create(
            model=served.MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, echo=True
        )
        self.assertTrue(answer.choices[0].text.startswith("The capital of France is Paris"))

    def test_models_are_listed(self):
        self.assertEqual([model.id for model in self.client.models.list()], [served.MODEL])
        self.assertEqual(self.client.models.retrieve(served.MODEL).id, served.MODEL)


class Responses(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = openai.OpenAI(base_url=f"{served.address()}/v1", api_key="none", max_retries=0)

    def test_a_conversation_is_kept(self):
        create = self.client.responses.create
        first = create(model=served.MODEL, input="Name a colour.", temperature=0, max_output_tokens=12)
        second = create(
            model=served.MODEL, input="Another.", previous_response_id=first.id, temperature=0, max_output_tokens=12
        )
        self.assertTrue(first.output_text and second.output_text)
        self.assertGreaterEqual(second.usage.input_tokens_details.cached_tokens, first.usage.input_tokens)
        self.assertEqual(self.client.responses.retrieve(first.id).output_text, first.output_text)

    def test_a_stream_builds_the_response(self):
        with self.client.responses.stream(
            model=served.MODEL, input="Name a colour.", temperature=0, max_output_tokens=12
        ) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        whole = self.client.responses.create(model=served.MODEL, input="Name a colour.", temperature=0, max_output_tokens=12)
        self.assertEqual(text, whole.output_text)

    def test_tools_and_schemas(self):
        tool = {"type": "function", **ADD["function"]}
        answer = self.client.responses.create(
            model=served.MODEL, input="What is 2 and 3?", tools=[tool], tool_choice="required", temperature=0, max_output_tokens=100
        )
        call = next(item for item in answer.output if item.type == "function_call")
        self.assertEqual(set(json.loads(call.arguments)), {"a", "b"})
        parsed = self.client.responses.parse(
            model=served.MODEL, input="Describe a colour.", text_format=Colour, temperature=0, max_output_tokens=200
        )
        self.assertIsInstance(parsed.output_parsed, Colour)
