/** Conversations as values: a tree of turns, of which one branch is shown. Every function returns a new value. */

import type { Conversation, Message, Settings } from "./types.ts";

export const NO_SETTINGS: Settings = {
  system: "",
  temperature: "",
  top_p: "",
  top_k: "",
  min_p: "",
  max_completion_tokens: "",
  seed: "",
  enable_thinking: "",
  tools: "",
};

/** The settings that are numbers, with the values that a server takes. */
export const NUMBERS: {
  key: Exclude<keyof Settings, "system" | "enable_thinking" | "tools">;
  label: string;
  help: string;
  min: number;
  max: number;
  /** `any`, or 1 for whole numbers. */
  step: string;
}[] = [
  { key: "temperature", label: "Temperature", help: "0 always takes the likeliest token", min: 0, max: 2, step: "any" },
  {
    key: "top_p",
    label: "Top p",
    help: "The likeliest tokens that together have this probability",
    min: 0,
    max: 1,
    step: "any",
  },
  { key: "top_k", label: "Top k", help: "This many of the likeliest tokens", min: 0, max: 1_000_000, step: "1" },
  {
    key: "min_p",
    label: "Min p",
    help: "Tokens at least this likely, relative to the likeliest",
    min: 0,
    max: 1,
    step: "any",
  },
  {
    key: "max_completion_tokens",
    label: "Max tokens",
    help: "The answer's greatest length",
    min: 1,
    max: 10_000_000,
    step: "1",
  },
  {
    key: "seed",
    label: "Seed",
    help: "The same seed gives the same answer",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    step: "1",
  },
];

/** 96 random bits. `crypto.randomUUID` is missing on pages that came over plain HTTP. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(model: string, settings: Settings): Conversation {
  return { id: newId(), title: "", updated: Date.now(), model, settings, messages: [], leaf: null };
}

/** The turns that are shown, from the first to the last. */
export function branch({ messages, leaf }: Pick<Conversation, "messages" | "leaf">): Message[] {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const path: Message[] = [];
  for (let at = leaf; at !== null;) {
    const message = byId.get(at);
    if (!message) break;
    path.push(message);
    at = message.parent;
  }
  return path.reverse();
}

/** The alternatives of a turn, itself among them, oldest first. */
export function alternatives(conversation: Conversation, message: Message): Message[] {
  return conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);
}

/** With a turn more, which is shown as the last. */
export function append(conversation: Conversation, message: Message): Conversation {
  return { ...conversation, messages: [...conversation.messages, message], leaf: message.id, updated: Date.now() };
}

/** With another value of a turn. */
export function replace(conversation: Conversation, message: Message): Conversation {
  const messages = conversation.messages.map((other) => (other.id === message.id ? message : other));
  return { ...conversation, messages, updated: Date.now() };
}

/** Without a turn that nothing follows. */
export function remove(conversation: Conversation, id: string): Conversation {
  return { ...conversation, messages: conversation.messages.filter((message) => message.id !== id) };
}

/** With the branch shown that goes through a turn and then through the newest of each generation. */
export function show(conversation: Conversation, id: string): Conversation {
  let leaf = id;
  for (;;) {
    const child = conversation.messages.findLast((message) => message.parent === leaf);
    if (!child) return { ...conversation, leaf };
    leaf = child.id;
  }
}

/** What a conversation is called until its user calls it something else. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

/** The calls of the last turn that have no result yet. */
export function openCalls(path: Message[]) {
  const last = path.findLastIndex((message) => message.role === "assistant");
  const answered = new Set(path.slice(last + 1).map((message) => message.toolCallId));
  return (path[last]?.toolCalls ?? []).filter((call) => !answered.has(call.id));
}

/**
 * The `messages` of a request that asks for what comes after a branch. Calls without a result, such as those that were
 * cut off, are left out: servers and templates expect a result after each.
 */
export function requestMessages(path: Message[], system: string): object[] {
  const answered = new Set(path.map((message) => message.toolCallId));
  const turns = path.map((message) => {
    const calls = (message.toolCalls ?? []).filter((call) => answered.has(call.id));
    if (message.role === "tool") return { role: "tool", tool_call_id: message.toolCallId, content: message.content };
    if (message.role === "user") return { role: "user", content: message.content };
    return {
      role: "assistant",
      content: message.content,
      ...(message.reasoning && { reasoning_content: message.reasoning }),
      ...(calls.length > 0 && {
        tool_calls: calls.map((call) => ({
          id: call.id,
          type: "function",
          function: { name: call.name, arguments: call.arguments },
        })),
      }),
    };
  });
  return system.trim() ? [{ role: "system", content: system }, ...turns] : turns;
}

/** The body of a request. Fails if the tools are not JSON. */
export function request(conversation: Conversation, path: Message[]): Record<string, unknown> {
  const { settings, model } = conversation;
  const body: Record<string, unknown> = {
    model,
    messages: requestMessages(path, settings.system),
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  };
  for (const { key } of NUMBERS) {
    if (settings[key]) body[key] = Number(settings[key]);
  }
  if (settings.enable_thinking) body.enable_thinking = settings.enable_thinking === "true";
  if (settings.tools.trim()) body.tools = JSON.parse(settings.tools);
  return body;
}

/** The shown branch as a Markdown document. */
export function toMarkdown(conversation: Conversation): string {
  const names = { user: "You", assistant: "Model", tool: "Tool" };
  const sections = branch(conversation).map((message) => {
    const who = message.role === "assistant" ? (message.model ?? names.assistant) : names[message.role];
    const calls = (message.toolCalls ?? []).map(
      (call) => `Calls \`${call.name}\`:\n\n${fence(call.arguments, "json")}`,
    );
    return [`## ${who}`, message.content.trim(), ...calls].filter(Boolean).join("\n\n");
  });
  const system = conversation.settings.system.trim();
  return [`# ${conversation.title}`, ...(system ? [`## System\n\n${system}`] : []), ...sections].join("\n\n") + "\n";
}

/** A code block whose fence is longer than any in it. */
function fence(code: string, language: string): string {
  const longest = Math.max(2, ...Array.from(code.matchAll(/`+/g), (run) => run[0].length));
  const marks = "`".repeat(longest + 1);
  return `${marks}${language}\n${code}\n${marks}`;
}
