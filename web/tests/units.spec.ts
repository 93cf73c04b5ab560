/** The parts that need no browser. */

import { expect, test } from "@playwright/test";
import * as talk from "../src/conversation.ts";
import { events } from "../src/sse.ts";
import type { Message } from "../src/types.ts";

async function parse(chunks: Uint8Array[]): Promise<string[]> {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  const found = [];
  for await (const data of events(body)) found.push(data);
  return found;
}

test("an event stream means the same however it is cut", async () => {
  const stream =
    ': hello\n\ndata: {"a":"é🦀"}\r\n\r\nevent: x\rid: 7\rdata:one\rdata: two\r\rdata:  kept\n\n:\n\ndata: [DONE]\n\ndata: cut off';
  const expected = ['{"a":"é🦀"}', "one\ntwo", " kept", "[DONE]"];
  const bytes = new TextEncoder().encode(stream);
  for (let at = 0; at <= bytes.length; at++) {
    expect(await parse([bytes.slice(0, at), bytes.slice(at)]), `cut at ${at}`).toEqual(expected);
  }
  expect(await parse(Array.from(bytes, (byte) => Uint8Array.of(byte)))).toEqual(expected);
});

test("leaving an event stream cancels it", async () => {
  let cancelled = false;
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: x\n\n")),
    cancel: () => void (cancelled = true),
  });
  for await (const data of events(body)) {
    expect(data).toBe("x");
    break;
  }
  expect(cancelled).toBe(true);
});

test("a conversation is a tree of which one branch is shown", () => {
  const turn = (id: string, parent: string | null, role: Message["role"]): Message => ({
    id,
    parent,
    role,
    content: id,
  });
  let tree = talk.newConversation("m", talk.NO_SETTINGS);
  const turns = [
    turn("q1", null, "user"), turn("a1", "q1", "assistant"), turn("q2", "a1", "user"), turn("a2", "q2", "assistant"),
    turn("b1", "q1", "assistant"), turn("r1", null, "user"),
  ]; // prettier-ignore
  for (const message of turns) tree = talk.append(tree, message);
  const shown = (at: typeof tree) => talk.branch(at).map(({ id }) => id);
  expect(shown(tree)).toEqual(["r1"]);
  expect(talk.alternatives(tree, turns[0]!).map(({ id }) => id)).toEqual(["q1", "r1"]);
  expect(shown(talk.show(tree, "q1"))).toEqual(["q1", "b1"]);
  expect(shown(talk.show(tree, "a1"))).toEqual(["q1", "a1", "q2", "a2"]);
  expect(shown(talk.remove(talk.show(tree, "q1"), "zzz"))).toEqual(["q1", "b1"]);
});

test("a request has the calls that have a result, and no others", () => {
  const call = (id: string) => ({ id, name: "f", arguments: "{" });
  const path: Message[] = [
    { id: "q", parent: null, role: "user", content: "do" },
    { id: "a", parent: "q", role: "assistant", content: "", toolCalls: [call("1"), call("2")] },
    { id: "t", parent: "a", role: "tool", content: "done", toolCallId: "1" },
  ];
  expect(talk.openCalls(path)).toEqual([call("2")]);
  expect(talk.requestMessages(path, " ")).toEqual([
    { role: "user", content: "do" },
    {
      role: "assistant",
      content: "",
      tool_calls: [{ id: "1", type: "function", function: { name: "f", arguments: "{" } }],
    },
    { role: "tool", tool_call_id: "1", content: "done" },
  ]);
  expect(talk.requestMessages(path.slice(0, 2), "")[1]).toEqual({ role: "assistant", content: "" });
});

test("an exported code block cannot be left by what is in it", () => {
  const message: Message = {
    id: "a",
    parent: null,
    role: "assistant",
    content: "",
    toolCalls: [{ id: "1", name: "f", arguments: "````" }],
  };
  const text = talk.toMarkdown(talk.append({ ...talk.newConversation("m", talk.NO_SETTINGS), title: "T" }, message));
  expect(text).toBe("# T\n\n## Model\n\nCalls `f`:\n\n`````json\n````\n`````\n");
});
