/** One turn of a conversation. */

import { useComputed, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { memo } from "preact/compat";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { rate } from "./api.ts";
import { copy } from "./clipboard.ts";
import { alternatives } from "./conversation.ts";
import { IconButton } from "./icons.tsx";
import { Rendered } from "./markdown.ts";
import * as state from "./state.ts";
import type { Finish, Message, Stats, ToolCall } from "./types.ts";

/** Text as Markdown, block by block; a block that has not changed is left alone. */
function Markdown({ text, growing = false }: { text: string; growing?: boolean }) {
  const rendered = useRef(new Rendered());
  const html = useMemo(() => rendered.current.update(text, !growing), [text, growing]);
  return (
    <div class="markdown">
      {html.map((block, at) => (
        <div key={at} dangerouslySetInnerHTML={{ __html: block }} />
      ))}
    </div>
  );
}

/** Something folded, which is rendered only once it is opened. */
function Fold({ label, children }: { label: string; children: () => ComponentChildren }) {
  const opened = useSignal(false);
  return (
    <details class="fold" onToggle={(event) => (opened.value = event.currentTarget.open)}>
      <summary>{label}</summary>
      {opened.value && <div class="fold-body">{children()}</div>}
    </details>
  );
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

function Call({ call }: { call: ToolCall }) {
  return <Fold label={`Tool call: ${call.name}`}>{() => <pre tabIndex={0}>{pretty(call.arguments)}</pre>}</Fold>;
}

const FINISHES: Partial<Record<Finish, string>> = {
  length: "Cut off at the greatest length",
  content_filter: "Withheld by the server",
  aborted: "Stopped",
  lost: "Interrupted",
};

function Numbers({ stats, model }: { stats: Stats; model: string | undefined }) {
  const context = state.contextOf(model);
  const speed = rate(stats);
  const used = stats.prompt + stats.completion;
  return (
    <>
      {speed !== undefined && <span title="Decoding, without the first token">{speed.toFixed(1)} tokens/s</span>}
      <span title="Tokens in this answer">{stats.completion} tokens</span>
      <span title="From the request to the first token">first after {stats.first.toFixed(2)} s</span>
      <span
        title={`Tokens of the context that are used${stats.cached ? `; ${stats.cached} of the prompt came from the cache` : ""}`}
      >
        context {used}
        {context && ` of ${context} `}
        {context && <meter aria-label="Context used" min={0} max={context} value={used} />}
      </span>
    </>
  );
}

function Editor({ message }: { message: Message }) {
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    area.current?.focus();
    area.current?.setSelectionRange(message.content.length, message.content.length);
    return () => document.getElementById("composer")?.focus();
  }, []);
  const close = () => (state.editing.value = null);
  const done = () => (state.edit(message, area.current!.value), close());
  return (
    <div class="editor">
      <textarea
        ref={area}
        aria-label="Edit the message"
        rows={Math.min(20, message.content.split("\n").length + 1)}
        defaultValue={message.content}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            done();
          } else if (event.key === "Escape") {
            event.stopPropagation();
            close();
          }
        }}
      />
      <div class="row">
        <button type="button" onClick={close}>
          Cancel
        </button>
        <button type="button" class="primary" onClick={done}>
          {message.role === "assistant" ? "Keep" : "Send"}
        </button>
      </div>
    </div>
  );
}

function Actions({ message }: { message: Message }) {
  const copied = useSignal(false);
  const others = alternatives(state.current.value, message);
  const at = others.findIndex(({ id }) => id === message.id);
  const busy = state.busy.value;
  const go = (by: number) => {
    const other = others[at + by];
    if (other) state.showAlternative(other);
  };
  return (
    <span class="actions">
      {others.length > 1 && (
        <span class="alternatives" role="group" aria-label="Alternatives">
          <IconButton name="previous" label="Previous alternative" disabled={busy || at === 0} onClick={() => go(-1)} />
          {at + 1} of {others.length}
          <IconButton
            name="next"
            label="Next alternative"
            disabled={busy || at === others.length - 1}
            onClick={() => go(1)}
          />
        </span>
      )}
      <IconButton
        name="copy"
        label={copied.value ? "Copied" : "Copy message"}
        onClick={async () => {
          copied.value = await copy(message.content);
          setTimeout(() => (copied.value = false), 2000);
        }}
      />
      <IconButton name="edit" label="Edit message" disabled={busy} onClick={() => (state.editing.value = message.id)} />
      <IconButton
        name="retry"
        label={message.role === "assistant" ? "Try again" : "Answer again"}
        disabled={busy}
        onClick={() => state.retry(message)}
      />
    </span>
  );
}

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };

/** A turn; the one that is being answered follows the stream, and it alone is rendered again for that. */
export const Turn = memo(function Turn({ message: kept }: { message: Message }) {
  const live = useComputed(() => (state.live.value?.id === kept.id ? state.live.value : null)).value;
  const growing = live !== null;
  const message = live ?? kept;
  const { role, content, reasoning, toolCalls, error, stats, finish, progress } = message;
  const thinking = growing && !content && !toolCalls?.length;
  const editing = state.editing.value === message.id;
  const ending = finish && FINISHES[finish];
  return (
    <article class={`turn ${role}`} aria-label={NAMES[role]} aria-busy={growing}>
      {reasoning && (
        <Fold label={thinking ? "Thinking…" : "Thoughts"}>{() => <Markdown text={reasoning} growing={growing} />}</Fold>
      )}
      {editing ? (
        <Editor message={message} />
      ) : role === "assistant" ? (
        content && <Markdown text={content} growing={growing} />
      ) : role === "tool" ? (
        <Fold label="Tool result">{() => <pre tabIndex={0}>{pretty(content)}</pre>}</Fold>
      ) : (
        <p class="said">{content}</p>
      )}
      {toolCalls?.map((call) => (
        <Call key={call.id} call={call} />
      ))}
      {growing && <span class="cursor" />}
      {progress && progress.total > 0 && (
        <span class="progress">Reading the prompt: {Math.floor((100 * progress.done) / progress.total)} %</span>
      )}
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      {!growing && !editing && (
        <footer>
          {ending && <span>{ending}</span>}
          {stats && <Numbers stats={stats} model={message.model} />}
          <Actions message={message} />
        </footer>
      )}
    </article>
  );
});
