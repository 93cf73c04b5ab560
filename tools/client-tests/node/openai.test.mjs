// The official Node client of OpenAI's API.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = process.env.BASERT_MODEL;
const client = new OpenAI({ baseURL: `${process.env.BASERT_URL}/v1`, apiKey: "none", maxRetries: 0 });

const Colour = z.object({ name: z.string(), red: z.int(), warm: z.boolean() });
const parameters = {
  type: "object",
  properties: { a: { type: "integer" }, b: { type: "integer" } },
  required: ["a", "b"],
  additionalProperties: false,
};
const add = { type: "function", function: { name: "add", description: "Adds two numbers.", parameters } };

const asked = (content, more) => ({ model, temperature: 0, messages: [{ role: "user", content }], ...more });

describe("chats", () => {
  const { completions } = client.chat;

  test("a stream is the whole answer", async () => {
    const whole = await completions.create(asked("Name three colours.", { max_completion_tokens: 24 }));
    const stream = completions.stream(
      asked("Name three colours.", { max_completion_tokens: 24, stream_options: { include_usage: true } }),
    );
    assert.equal(await stream.finalContent(), whole.choices[0].message.content);
    assert.equal((await stream.totalUsage()).total_tokens, whole.usage.total_tokens);
  });

  test("tools are called and their results read", async () => {
    const request = asked("What is 2 and 3?", { tools: [add], tool_choice: "required", parallel_tool_calls: false });
    const stream = completions.stream({ ...request, max_tokens: 100 });
    const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
    assert.equal(finish_reason, "tool_calls");
    const [call] = message.tool_calls;
    assert.equal(call.function.name, "add");
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ["a", "b"]);
    const messages = [...request.messages, message, { role: "tool", tool_call_id: call.id, content: "5" }];
    const last = await completions.create({ model, messages, tools: [add], max_tokens: 8 });
    assert.ok(last.usage.completion_tokens > 0);
  });

  test("tools are run by the client", async () => {
    const given = [];
    const run = ({ a, b }) => {
      given.push([a, b]);
      return String(a + b);
    };
    const tool = { ...add, function: { ...add.function, parse: JSON.parse, function: run } };
    const choice = { type: "function", function: { name: "add" } };
    const runner = completions.runTools(
      asked("What is 2 and 3?", { tools: [tool], tool_choice: choice, parallel_tool_calls: false, max_tokens: 100 }),
    );
    await runner.done();
    assert.equal(given.length, 1);
  });

  test("an answer has the schema that was asked for", async () => {
    const response_format = zodResponseFormat(Colour, "colour");
    const answer = await completions.parse(asked("Describe a colour.", { response_format, max_tokens: 200 }));
    assert.doesNotThrow(() => Colour.parse(answer.choices[0].message.parsed));
  });

  test("mistakes are the client's own errors", async () => {
    await assert.rejects(completions.create({ ...asked("x"), model: "other" }), OpenAI.NotFoundError);
    await assert.rejects(completions.create(asked("x", { frobnicate: 1 })), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "frobnicate");
      return true;
    });
    await assert.rejects(completions.create(asked("long ".repeat(5000))), { code: "context_length_exceeded" });
  });

  test("who leaves ends the answer", async () => {
    const stream = await completions.create(asked("Write a very long story.", { stream: true, ignore_eos: true }));
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    assert.ok(stream.controller.signal.aborted);
  });
});

describe("responses", () => {
  test("a stream is the whole answer, and the conversation goes on", async () => {
    const request = { model, input: "Name a colour.", temperature: 0, max_output_tokens: 12 };
    const first = await client.responses.create(request);
    const streamed = await client.responses.stream(request).finalResponse();
    assert.equal(streamed.output_text, first.output_text);
    const second = await client.responses.create({ ...request, input: "Another.", previous_response_id: first.id });
    assert.ok(second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens);
  });

  test("tools and schemas", async () => {
    const request = { model, temperature: 0, tools: [{ type: "function", strict: true, ...add.function }] };
    const input = [{ role: "user", content: "What is 2 and 3?" }];
    const answer = await client.responses.create({ ...request, input, tool_choice: "required", max_output_tokens: 100 });
    const calls = answer.output.filter((item) => item.type === "function_call");
    assert.equal(calls[0].name, "add");
    const results = calls.map(({ call_id }) => ({ type: "function_call_output", call_id, output: "5" }));
    const more = [...input, ...answer.output, ...results];
    const last = await client.responses.create({ ...request, input: more, tool_choice: "none", max_output_tokens: 8 });
    assert.ok(last.usage.output_tokens > 0);
    const text = { format: zodTextFormat(Colour, "colour") };
    const parsed = await client.responses.parse({ model, input: "Describe a colour.", text, max_output_tokens: 200 });
    assert.doesNotThrow(() => Colour.parse(parsed.output_parsed));
  });
});

test("texts, models", async () => {
  const prompt = "The capital of France is";
  const answer = await client.completions.create({ model, prompt, max_tokens: 4, temperature: 0 });
  assert.ok(answer.choices[0].text.startsWith(" Paris"));
  assert.deepEqual((await client.models.list()).data.map(({ id }) => id), [model]);
});
