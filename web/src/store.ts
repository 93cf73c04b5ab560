/** Conversations in the browser's own database. */

import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import type { Conversation } from "./types.ts";

interface Schema extends DBSchema {
  conversations: { key: string; value: Conversation };
}

let database: Promise<IDBPDatabase<Schema>> | undefined;

function open(): Promise<IDBPDatabase<Schema>> {
  return (database ??= openDB<Schema>("basert", 1, {
    upgrade: (db) => void db.createObjectStore("conversations", { keyPath: "id" }),
  }));
}

/** Tells the page's other tabs that something was written; `onmessage` is how they hear of it. */
export const others = new BroadcastChannel("basert");

/** All conversations, the latest first. Fails where the browser keeps nothing, as in some private windows. */
export async function load(): Promise<Conversation[]> {
  const all = await (await open()).getAll("conversations");
  return all.sort((a, b) => b.updated - a.updated);
}

/** Keeps a conversation; `partial` ones, of which more is to come soon, without telling the other tabs. */
export async function save(conversation: Conversation, partial = false): Promise<void> {
  await (await open()).put("conversations", conversation);
  if (!partial) others.postMessage(null);
}

export async function remove(id: string): Promise<void> {
  await (await open()).delete("conversations", id);
  others.postMessage(null);
}
