/** The page: conversations at the side, the one that is open beside them. */

import { useLayoutEffect, useRef } from "preact/hooks";
import { toMarkdown } from "./conversation.ts";
import { Composer } from "./composer.tsx";
import { OpenDialog } from "./dialogs.tsx";
import { Icon, IconButton } from "./icons.tsx";
import * as state from "./state.ts";
import { Thread } from "./thread.tsx";

function Sidebar() {
  const { id } = state.current.value;
  const nav = useRef<HTMLElement>(null);
  const open = state.sidebar.value;
  useLayoutEffect(() => {
    if (!open) return;
    const before = document.activeElement;
    nav.current?.querySelector("button")?.focus();
    return () => before instanceof HTMLElement && before.focus();
  }, [open]);
  return (
    <nav ref={nav} class={`sidebar ${open ? "open" : ""}`} aria-label="Conversations">
      <div class="sidebar-head">
        <button type="button" class="new" onClick={state.fresh}>
          <Icon name="plus" /> New conversation
        </button>
        <IconButton
          name="close"
          label="Close the list"
          class="icon-button narrow"
          onClick={() => (state.sidebar.value = false)}
        />
      </div>
      <ul>
        {state.conversations.value.map((conversation) => (
          <li key={conversation.id}>
            <button
              type="button"
              title={conversation.title}
              aria-current={conversation.id === id}
              onClick={() => state.open(conversation)}
            >
              {conversation.title}
            </button>
          </li>
        ))}
      </ul>
    </nav>
  );
}

/** Offers a file for the user to keep. */
function download(name: string, type: string, text: string) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function Menu() {
  const conversation = state.current.value;
  const file = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
  const items: [string, () => void][] = [
    ["Rename", () => (state.dialog.value = "rename")],
    ["Export as Markdown", () => download(`${file}.md`, "text/markdown", toMarkdown(conversation))],
    ["Export as JSON", () => download(`${file}.json`, "application/json", JSON.stringify(conversation, null, 2))],
    ["Delete", () => (state.dialog.value = "delete")],
  ];
  const close = (event: Event) => (event.currentTarget as Element).closest("details")?.removeAttribute("open");
  return (
    <details
      class="menu"
      onFocusOut={(event) => !event.currentTarget.contains(event.relatedTarget as Node) && close(event)}
      onKeyDown={(event) =>
        event.key === "Escape" && event.currentTarget.open && (event.stopPropagation(), close(event))
      }
    >
      <summary class="icon-button" aria-label="This conversation" title="This conversation">
        <Icon name="more" />
      </summary>
      <div class="menu-items">
        {items.map(([label, run]) => (
          <button key={label} type="button" onClick={(event) => (close(event), run())}>
            {label}
          </button>
        ))}
      </div>
    </details>
  );
}

const THEMES = { auto: "light", light: "dark", dark: "auto" } as const;

function Header() {
  const { title, model, messages } = state.current.value;
  const theme = state.theme.value;
  return (
    <header class="top">
      <IconButton
        name="menu"
        label="Conversations"
        class="icon-button narrow"
        aria-expanded={state.sidebar.value}
        onClick={() => (state.sidebar.value = true)}
      />
      <select aria-label="Model" value={model} onChange={(event) => state.setModel(event.currentTarget.value)}>
        {state.models.value.map(({ id }) => (
          <option key={id}>{id}</option>
        ))}
      </select>
      <h1>{title || "New conversation"}</h1>
      {messages.length > 0 && <Menu />}
      <IconButton name="settings" label="Settings" onClick={() => (state.dialog.value = "settings")} />
      <IconButton name={theme} label={`Colours: ${theme}`} onClick={() => state.setTheme(THEMES[theme])} />
      <IconButton
        name="keyboard"
        label="Keyboard shortcuts"
        class="icon-button wide"
        onClick={() => (state.dialog.value = "help")}
      />
    </header>
  );
}

function Notice() {
  const notice = state.notice.value;
  return (
    notice && (
      <div class="notice" role="alert">
        <span>{notice.text}</span>
        {notice.retry && (
          <button type="button" onClick={notice.retry}>
            Try again
          </button>
        )}
        <IconButton name="close" label="Dismiss" onClick={() => (state.notice.value = null)} />
      </div>
    )
  );
}

export function App() {
  return (
    <>
      <a class="skip" href="#composer">
        To the message field
      </a>
      <Sidebar />
      {state.sidebar.value && <div class="backdrop" onClick={() => (state.sidebar.value = false)} />}
      <main inert={state.sidebar.value}>
        <Header />
        <Notice />
        <Thread />
        <Composer />
      </main>
      <OpenDialog />
      <div class="offscreen" role="status">
        {state.status.value}
      </div>
    </>
  );
}
