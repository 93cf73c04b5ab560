/** What is kept of a conversation, and what the server says. */

export type Role = "user" | "assistant" | "tool";

export interface ToolCall {
  id: string;
  name: string;
  /** JSON, or the beginning of it while it is streamed. */
  arguments: string;
}

/** Counts are of tokens, times in seconds. */
export interface Stats {
  prompt: number;
  cached: number;
  completion: number;
  /** From the request to the first piece of the answer. */
  first: number;
  /** From the first piece to the last. */
  rest: number;
}

/**
 * Why an answer ended: the server's `finish_reason`, or `aborted` by the user, or `lost` with the connection or the
 * page.
 */
export type Finish = "stop" | "length" | "tool_calls" | "content_filter" | "aborted" | "lost";

/** One turn. Turns with the same parent are alternatives of each other, by an edit or another try. */
export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  content: string;
  reasoning?: string;
  toolCalls?: ToolCall[];
  /** Of a tool's result: which call it answers. */
  toolCallId?: string;
  model?: string;
  stats?: Stats;
  finish?: Finish;
  error?: string;
  /** Tokens of the prompt that are computed, of all, until the answer begins. */
  progress?: { done: number; total: number };
}

/** An empty string leaves a setting to the server. */
export interface Settings {
  system: string;
  temperature: string;
  top_p: string;
  top_k: string;
  min_p: string;
  max_completion_tokens: string;
  seed: string;
  /** Whether models that can think do: `true`, `false` or as they are used to. */
  enable_thinking: string;
  /** Definitions of tools, a JSON array. */
  tools: string;
}

export interface Conversation {
  id: string;
  title: string;
  /** Milliseconds since 1970 of the last change. */
  updated: number;
  model: string;
  settings: Settings;
  /** All turns, parents before their children. */
  messages: Message[];
  /** The last turn of the branch that is shown. */
  leaf: string | null;
}

export interface Model {
  id: string;
  /** Tokens that it can take in all; unknown until it is loaded. */
  context_length?: number | null;
  /** What a request that leaves a setting open is answered with, by the settings' names; unknown until it is loaded. */
  default_sampling?: Record<string, number> | null;
}
