/** The turns that are shown, one below the other. */

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { copy } from "./clipboard.ts";
import { openCalls } from "./conversation.ts";
import { Icon } from "./icons.tsx";
import { Turn } from "./message.tsx";
import * as state from "./state.ts";
import type { ToolCall } from "./types.ts";

/** Pixels from the end within which the reader counts as being there. */
const NEAR = 40;

/** Keeps the end in view while an answer grows, unless the reader has scrolled away from it. */
function useFollow() {
  const pane = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const away = useSignal(false);

  const toEnd = () => {
    follows.current = true;
    pane.current?.scrollTo({ top: pane.current.scrollHeight });
  };

  useEffect(() => {
    const { current: box } = pane;
    if (!box || !content.current) return;
    let top = box.scrollTop;
    const onScroll = () => {
      const distance = box.scrollHeight - box.clientHeight - box.scrollTop;
      // The end also gets further away by growing; only going up is turning away.
      if (distance < NEAR) follows.current = true;
      else if (box.scrollTop < top) follows.current = false;
      top = box.scrollTop;
      away.value = distance >= NEAR && !follows.current;
    };
    let growing = false;
    const sizes = new ResizeObserver(() => {
      const busy = state.busy.peek();
      // Also when the numbers are put below a complete answer; not when something is unfolded later.
      if ((busy || growing) && follows.current) toEnd();
      growing = busy;
      onScroll();
    });
    sizes.observe(content.current);
    box.addEventListener("scroll", onScroll, { passive: true });
    return () => {
      sizes.disconnect();
      box.removeEventListener("scroll", onScroll);
    };
  }, []);

  return { pane, content, away, toEnd };
}

/** Copies the code block whose button was pressed: these buttons are part of rendered Markdown. */
async function copyCode(event: MouseEvent) {
  const button = event.target instanceof Element && event.target.closest<HTMLElement>("[data-copy]");
  if (!button) return;
  const text = button.closest(".code")?.querySelector("code")?.textContent ?? "";
  button.textContent = (await copy(text)) ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

function ResultForm({ call }: { call: ToolCall }) {
  const area = useRef<HTMLTextAreaElement>(null);
  return (
    <div class="editor">
      <label>
        Result of {call.name}
        <textarea ref={area} rows={3} />
      </label>
      <div class="row">
        <button type="button" class="primary" onClick={() => state.giveResult(call.id, area.current!.value)}>
          Give result
        </button>
      </div>
    </div>
  );
}

export function Thread() {
  const { pane, content, away, toEnd } = useFollow();
  const path = state.shown.value;
  const { id } = state.current.value;
  const asked = path.findLast((message) => message.role === "user")?.id;

  useLayoutEffect(toEnd, [id, asked]);

  return (
    <div class="pane">
      <div class="scroll" ref={pane} tabIndex={-1}>
        <div
          class="column thread"
          ref={content}
          role="log"
          aria-label="Conversation"
          aria-live="off"
          onClick={copyCode}
        >
          {path.length === 0 && <p class="empty">Ask something.</p>}
          {path.map((message) => (
            <Turn key={message.id} message={message} />
          ))}
          {!state.busy.value && openCalls(path).map((call) => <ResultForm key={call.id} call={call} />)}
        </div>
      </div>
      {away.value && (
        <button type="button" class="to-end" onClick={toEnd}>
          <Icon name="down" /> To the end
        </button>
      )}
    </div>
  );
}
