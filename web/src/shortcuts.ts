/** The keyboard: what the keys do wherever the focus is, and the list for the user to read. */

import * as state from "./state.ts";

interface Shortcut {
  keys: string;
  does: string;
  /** Those without are handled where they apply. */
  code?: string;
  alt?: boolean;
  run?: () => void;
}

const focusComposer = () => document.getElementById("composer")?.focus();

export const SHORTCUTS: Shortcut[] = [
  { keys: "Enter", does: "Send" },
  { keys: "Shift+Enter", does: "New line" },
  { keys: "Esc", does: "Stop the answer; leave an edit or a dialog" },
  { keys: "↑", does: "Edit the last message, from an empty field" },
  { keys: "/", does: "Go to the message field", code: "/", run: focusComposer },
  { keys: "?", does: "These shortcuts", code: "?", run: () => (state.dialog.value = "help") },
  { keys: "Alt+N", does: "New conversation", code: "KeyN", alt: true, run: () => (state.fresh(), focusComposer()) },
  { keys: "Alt+S", does: "Settings", code: "KeyS", alt: true, run: () => (state.dialog.value = "settings") },
  { keys: "Alt+R", does: "Another answer", code: "KeyR", alt: true, run: state.retryLast },
  { keys: "Alt+PageUp", does: "Conversation above", code: "PageUp", alt: true, run: () => state.step(-1) },
  { keys: "Alt+PageDown", does: "Conversation below", code: "PageDown", alt: true, run: () => state.step(1) },
];

export function onKeyDown(event: KeyboardEvent) {
  if (state.dialog.value || event.ctrlKey || event.metaKey || event.isComposing) return;
  if (event.key === "Escape") {
    if (state.sidebar.value) state.sidebar.value = false;
    else state.stop();
    return;
  }
  const typing = event.target instanceof HTMLElement && event.target.matches("input, textarea, select");
  // With Alt a key may write another character, so it is known by its place; without, by what it writes.
  const shortcut = SHORTCUTS.find(({ code, alt }) =>
    alt ? event.altKey && event.code === code : !event.altKey && !typing && event.key === code,
  );
  if (!shortcut?.run) return;
  event.preventDefault();
  shortcut.run();
}
