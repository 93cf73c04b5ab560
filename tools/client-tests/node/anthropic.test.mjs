// The official Node client of Anthropic's API.

import assert from "node:assert/strict";
import { test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

const model = process.env.BASERT_MODEL;
const client = new Anthropic({ baseURL: process.env.BASERT_URL, apiKey: "none", maxRetries: 0 });

const Colour = z.object({ name: z.string(), red: z.int(), warm: z.boolean() });
const add = {
  name: "add",
  description: "Adds two numbers.",
  input_schema: {
    type: "object",
    properties: { a: { type: "integer" }, b: { type: "integer" } },
    required: ["a", "b"],
    additionalProperties: false,
  },
};

const asked = (content, more) => ({
  model,
  temperature: 0,
  max_tokens: 24,
  messages: [{ role: "user", content }],
  ...more,
});

test("a stream is the whole answer", async () => {
  const whole = await client.messages.create(asked("Name a colour.", { system: "Be brief." }));
  const final = await client.messages.stream(asked("Name a colour.", { system: "Be brief." })).finalMessage();
  assert.deepEqual(final.content, whole.content);
  assert.equal(final.stop_reason, whole.stop_reason);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test("tools are called and their results read", async () => {
  const tool_choice = { type: "any", disable_parallel_tool_use: true };
  const request = asked("What is 2 and 3?", { tools: [add], tool_choice, max_tokens: 100 });
  const answer = await client.messages.stream(request).finalMessage();
  assert.equal(answer.stop_reason, "tool_use");
  const call = answer.content.find(({ type }) => type === "tool_use");
  assert.deepEqual(Object.keys(call.input).sort(), ["a", "b"]);
  const result = { type: "tool_result", tool_use_id: call.id, content: "no such numbers", is_error: true };
  const messages = [...request.messages, { role: "assistant", content: answer.content }, { role: "user", content: [result] }];
  const last = await client.messages.create({ model, max_tokens: 8, messages, tools: [add] });
  assert.ok(last.usage.output_tokens > 0);
});

test("an answer has the schema that was asked for", async () => {
  const output_config = { format: zodOutputFormat(Colour) };
  const answer = await client.messages.parse(asked("Describe a colour.", { output_config, max_tokens: 200 }));
  assert.doesNotThrow(() => Colour.parse(answer.parsed_output));
});

test("tokens are counted", async () => {
  const { messages } = asked("Name a colour.");
  const { input_tokens } = await client.messages.countTokens({ model, messages });
  const { usage } = await client.messages.create(asked("Name a colour."));
  assert.equal(input_tokens, usage.input_tokens + usage.cache_read_input_tokens);
});

test("mistakes are the client's own errors", async () => {
  await assert.rejects(client.messages.create({ ...asked("x"), model: "other" }), Anthropic.NotFoundError);
  await assert.rejects(client.messages.create(asked("x", { frobnicate: 1 })), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError);
    assert.match(error.message, /frobnicate/);
    return true;
  });
});

test("who leaves ends the answer", async () => {
  const stream = client.messages.stream(asked("Write a very long story.", { max_tokens: 3000 }));
  for await (const event of stream) if (event.type === "content_block_delta") break;
  stream.abort();
  await assert.rejects(stream.done(), Anthropic.APIUserAbortError);
});
