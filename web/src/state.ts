/** What the page shows, as signals, and all that its user can do. */

import { batch, computed, signal } from "@preact/signals";
import * as api from "./api.ts";
import * as talk from "./conversation.ts";
import * as store from "./store.ts";
import type { Conversation, Message, Model, Settings } from "./types.ts";

export type DialogName = "settings" | "help" | "key" | "rename" | "delete";
export type Theme = "auto" | "light" | "dark";

export const models = signal<Model[]>([]);
/** What is wrong with the server or the browser, for the user to read. */
export const notice = signal<{ text: string; retry?: () => void } | null>(null);
export const conversations = signal<Conversation[]>([]);
/** The conversation that is shown. It is kept with the others once something has been said. */
export const current = signal<Conversation>(talk.newConversation("", talk.NO_SETTINGS));
/** The turn that is being answered, with what there is of it. */
export const live = signal<Message | null>(null);
export const editing = signal<string | null>(null);
export const dialog = signal<DialogName | null>(null);
export const sidebar = signal(false);
/** What a screen reader announces. */
export const status = signal("");

/** Whether an answer is under way. */
export const busy = computed(() => live.value !== null);
export const shown = computed(() => talk.branch(current.value));
/** How many tokens a model can take in all, if that is known. */
export const defaultsOf = (model: string | undefined) => models.value.find(({ id }) => id === model)?.default_sampling;
export const contextOf = (model: string | undefined) => models.value.find(({ id }) => id === model)?.context_length;

// Preferences

// A browser that is told to keep nothing refuses both; the page then works without.
function recall(name: string, storage: "localStorage" | "sessionStorage" = "localStorage"): string {
  try {
    return window[storage].getItem(`basert.${name}`) ?? "";
  } catch {
    return "";
  }
}
function remember(name: string, value: string, storage: "localStorage" | "sessionStorage" = "localStorage") {
  try {
    window[storage].setItem(`basert.${name}`, value);
  } catch {}
}

export const theme = signal((recall("theme") || "auto") as Theme);

export function setTheme(value: Theme) {
  theme.value = value;
  remember("theme", value);
  document.documentElement.dataset.theme = value;
}

let key = recall("key", "sessionStorage") || recall("key");
let afterKey: (() => void) | undefined;

/** Keeps the API key, until the window closes or for longer, and does again what it was missing for. */
export function setKey(value: string, keep: boolean) {
  key = value;
  remember("key", value, "sessionStorage");
  if (keep) remember("key", value);
  dialog.value = null;
  afterKey?.();
}

/** Asks for the key if that is what an error is about. */
function needsKey(error: unknown, again: () => void): boolean {
  if (!(error instanceof api.ApiError) || error.status !== 401) return false;
  afterKey = again;
  dialog.value = "key";
  return true;
}

const reasonOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

// Conversations

export async function start() {
  setTheme(theme.value);
  await reload();
  const latest = conversations.value.find(({ id }) => id === recall("open"));
  if (latest) open(latest);
  else fresh();
  void loadModels();
}

/** Reads the conversations again, after another tab has written. */
async function reload() {
  try {
    conversations.value = await store.load();
  } catch (error) {
    notice.value = {
      text: `Conversations will be lost with this page: the browser keeps nothing (${reasonOf(error)}).`,
    };
    return;
  }
  const same = conversations.value.find(({ id }) => id === current.value.id);
  if (same && !live.value) current.value = same;
}
store.others.onmessage = () => void reload();

export async function loadModels() {
  try {
    models.value = await api.models(key);
    notice.value = models.value.length ? null : { text: "The server has no model." };
    choose(current.value.model || recall("model"));
  } catch (error) {
    if (needsKey(error, () => void loadModels()))
      notice.value = { text: "The server asks for an API key.", retry: () => (dialog.value = "key") };
    else notice.value = { text: reasonOf(error), retry: () => void loadModels() };
  }
}

/** Takes a model if the server has it, and its first otherwise. */
function choose(id: string) {
  const found = models.value.find((model) => model.id === id) ?? models.value[0];
  if (found) current.value = { ...current.value, model: found.id };
}

/** A change of the conversation that is shown; kept if there is anything to keep. */
function change(value: Conversation) {
  current.value = value;
  if (value.messages.length === 0) return;
  const rest = conversations.value.filter(({ id }) => id !== value.id);
  conversations.value = [value, ...rest].sort((a, b) => b.updated - a.updated);
  remember("open", value.id);
  store.save(value).catch((error: unknown) => {
    notice.value = { text: `This conversation could not be kept: ${reasonOf(error)}` };
  });
}

export function open(conversation: Conversation) {
  stop();
  batch(() => {
    current.value = conversation;
    editing.value = null;
    sidebar.value = false;
    // The server may not have the model any more.
    if (models.value.length) choose(conversation.model);
  });
  remember("open", conversation.id);
}

/** A new conversation with the settings of the last. */
export function fresh() {
  const { settings, model } = current.value;
  const latest = conversations.value[0];
  const kept = current.value.messages.length || !latest ? settings : latest.settings;
  open(talk.newConversation(model || recall("model"), kept));
}

export function rename(title: string) {
  if (title.trim()) change({ ...current.value, title: title.trim() });
}

export async function discard() {
  const { id } = current.value;
  stop();
  conversations.value = conversations.value.filter((other) => other.id !== id);
  fresh();
  await store.remove(id).catch((error: unknown) => (notice.value = { text: reasonOf(error) }));
}

/** Opens the conversation that is so many places further down the list. */
export function step(by: number) {
  const at = conversations.value.findIndex(({ id }) => id === current.value.id);
  const next = conversations.value[at + by];
  if (next) open(next);
}

export function setModel(id: string) {
  remember("model", id);
  change({ ...current.value, model: id });
}

export function setSettings(settings: Settings) {
  change({ ...current.value, settings });
}

// Turns

/** Says something, and has it answered. */
export function say(content: string) {
  if (live.value || !content.trim()) return;
  add({ role: "user", content, parent: current.value.leaf });
  void generate();
}

/** Gives the result of a tool call; when there is one for each, the model goes on. */
export function giveResult(toolCallId: string, content: string) {
  add({ role: "tool", content, toolCallId, parent: current.value.leaf });
  if (talk.openCalls(shown.value).length === 0) void generate();
}

/** Another answer in place of this one, or another answer to this turn of the user's. */
export function retry(message: Message) {
  if (live.value) return;
  const leaf = message.role === "assistant" ? message.parent : message.id;
  const failed = message.error && !message.content && !message.reasoning;
  current.value = { ...(failed ? talk.remove(current.value, message.id) : current.value), leaf };
  void generate();
}

/** Another answer in place of the last. */
export function retryLast() {
  const last = shown.value.findLast(({ role }) => role === "assistant");
  if (last) retry(last);
}

/** Another version of a turn beside the old one; the user's is answered anew. */
export function edit(message: Message, content: string) {
  editing.value = null;
  if (live.value || !content.trim() || content === message.content) return;
  if (message.role === "assistant") {
    const { stats: _, error: __, ...rest } = message;
    add({ ...rest, content });
  } else {
    add({ ...message, content });
    if (talk.openCalls(shown.value).length === 0) void generate();
  }
}

export function showAlternative(message: Message) {
  if (!live.value) change(talk.show(current.value, message.id));
}

function add(message: Omit<Message, "id">): Message {
  const turn = { ...message, id: talk.newId() };
  const title = current.value.title || talk.titleOf(turn.content);
  change({ ...talk.append(current.value, turn), title });
  return turn;
}

let controller: AbortController | undefined;

export function stop() {
  controller?.abort();
}

/** How often an unfinished answer is kept, in milliseconds, for a page that is closed meanwhile. */
const SAVE_EVERY = 1000;

/** Has the branch that is shown answered. */
async function generate() {
  const conversation = current.value;
  const path = shown.value;
  let body;
  try {
    body = talk.request(conversation, path);
  } catch (error) {
    notice.value = { text: `The tools in the settings are not JSON: ${reasonOf(error)}` };
    return;
  }

  const abort = (controller = new AbortController());
  let message = add({
    role: "assistant",
    content: "",
    parent: conversation.leaf,
    model: conversation.model,
    finish: "lost",
  });
  // The answer belongs to this conversation, also if the user has turned to another when it ends.
  let kept = current.value;
  const { finish: _, ...draft } = message;
  message = draft;

  let frame = 0;
  let next = 0;
  let saved = performance.now();
  const paint = () => {
    const start = performance.now();
    if (start < next) return void (frame = requestAnimationFrame(paint));
    frame = 0;
    live.value = { ...message };
    // Rendering, which follows at once, gets a third of the time at most: the rest is for the reader's own doings.
    queueMicrotask(() => (next = performance.now() + 2 * (performance.now() - start)));
    if (performance.now() - saved < SAVE_EVERY) return;
    saved = performance.now();
    void store.save(talk.replace(kept, { ...message, finish: "lost" }), true).catch(() => {});
  };
  paint();
  status.value = "Answering";
  try {
    for await (const _ of api.answer(message, body, key, abort.signal)) {
      frame ||= requestAnimationFrame(paint);
    }
    status.value = "Answer complete";
    // The model may have been loaded for this answer, and more be known of it now.
    if (!contextOf(message.model)) void loadModels();
  } catch (error) {
    if (abort.signal.aborted) message.finish = "aborted";
    else {
      message.finish = "lost";
      message.error = reasonOf(error);
      needsKey(error, () => retry(message));
    }
    status.value = abort.signal.aborted ? "Stopped" : "The answer failed";
  }
  cancelAnimationFrame(frame);
  delete message.progress;
  batch(() => {
    live.value = null;
    if (current.value.id === kept.id) kept = current.value;
    const done = talk.replace(kept, message);
    if (current.value.id === kept.id) change(done);
    else if (conversations.value.some(({ id }) => id === kept.id)) {
      conversations.value = conversations.value.map((other) => (other.id === done.id ? done : other));
      void store.save(done).catch(() => {});
    }
  });
}
