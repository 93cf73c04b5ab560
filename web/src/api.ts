/** The server's API, as far as the page uses it. */

import { events } from "./sse.ts";
import type { Finish, Message, Model, Stats, ToolCall } from "./types.ts";

/** The server refused, or could not be reached (status 0). */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

async function send(path: string, key: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key) headers.set("authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  throw new ApiError(
    reason(text) ?? `The server answered ${response.status} ${response.statusText}`.trim(),
    response.status,
  );
}

/** The message in an error's body. */
function reason(body: string): string | undefined {
  try {
    const message: unknown = JSON.parse(body)?.error?.message;
    return typeof message === "string" ? message : undefined;
  } catch {
    return undefined;
  }
}

export async function models(key: string): Promise<Model[]> {
  const response = await send("v1/models", key);
  const body = (await response.json()) as { data?: Model[] };
  return body.data ?? [];
}

/** One event of a streamed answer; the fields that the page reads. */
interface Chunk {
  choices?: {
    delta?: {
      content?: string | null;
      reasoning_content?: string | null;
      tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
    };
    finish_reason?: Finish | null;
  }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
  prompt_progress?: { total: number; cache: number; processed: number };
  error?: { message?: string };
}

/**
 * Asks for an answer and yields `message` with what has come of it so far: the same object each time, changed in
 * place. It ends when the answer is complete; an answer that is cut off is an error.
 */
export async function* answer(
  message: Message,
  body: object,
  key: string,
  signal: AbortSignal,
): AsyncGenerator<Message> {
  const asked = performance.now();
  let first = 0;
  let last = 0;
  const response = await send("v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.body) throw new ApiError("The server sent no answer.", response.status);

  for await (const data of connected(events(response.body), signal)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data) as Chunk;
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server failed.", response.status);

    const choice = chunk.choices?.[0];
    const delta = choice?.delta;
    if (delta?.content || delta?.reasoning_content || delta?.tool_calls?.length) {
      last = performance.now();
      first ||= last;
      delete message.progress;
    }
    if (chunk.prompt_progress) {
      message.progress = { done: chunk.prompt_progress.processed, total: chunk.prompt_progress.total };
    }
    if (delta?.content) message.content += delta.content;
    if (delta?.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
    for (const piece of delta?.tool_calls ?? []) {
      const calls = (message.toolCalls ??= []);
      const call: ToolCall = (calls[piece.index] ??= { id: "", name: "", arguments: "" });
      call.id ||= piece.id ?? "";
      call.name ||= piece.function?.name ?? "";
      call.arguments += piece.function?.arguments ?? "";
    }
    if (choice?.finish_reason) message.finish = choice.finish_reason;
    if (chunk.usage) {
      message.stats = {
        prompt: chunk.usage.prompt_tokens,
        cached: chunk.usage.prompt_tokens_details?.cached_tokens ?? 0,
        completion: chunk.usage.completion_tokens,
        first: first ? (first - asked) / 1000 : 0,
        rest: (last - first) / 1000,
      };
    }
    yield message;
  }
  if (!message.finish) throw new ApiError(LOST, 0);
}

const LOST = "The connection was lost before the answer was complete.";

/** Calls a broken connection what it is; the browser's own word for it says less. */
async function* connected<T>(stream: AsyncGenerator<T>, signal: AbortSignal): AsyncGenerator<T> {
  try {
    yield* stream;
  } catch (error) {
    throw signal.aborted ? error : new ApiError(LOST, 0);
  }
}

/** Tokens a second after the first token; nothing to say of fewer than two. */
export function rate({ completion, rest }: Stats): number | undefined {
  return completion > 1 && rest > 0 ? (completion - 1) / rest : undefined;
}
