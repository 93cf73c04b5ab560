/** Where the user writes. */

import { useLayoutEffect, useRef } from "preact/hooks";
import { IconButton } from "./icons.tsx";
import * as state from "./state.ts";

export function Composer() {
  const area = useRef<HTMLTextAreaElement>(null);
  const { id } = state.current.value;
  const busy = state.busy.value;

  const fit = () => {
    const { style, scrollHeight } = ((area.current!.style.height = "auto"), area.current!);
    style.height = `${scrollHeight}px`;
  };
  useLayoutEffect(() => area.current?.focus(), [id]);

  const send = () => {
    const text = area.current!.value;
    if (state.busy.peek() || !text.trim()) return;
    area.current!.value = "";
    fit();
    state.say(text);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && area.current!.value === "" && !state.busy.peek()) {
      const last = state.shown.value.findLast((message) => message.role === "user");
      if (!last) return;
      event.preventDefault();
      state.editing.value = last.id;
    }
  };

  return (
    <div class="composer column">
      <div class="box">
        <textarea
          id="composer"
          ref={area}
          rows={1}
          aria-label="Message"
          placeholder="Message"
          enterkeyhint="send"
          onInput={fit}
          onKeyDown={onKeyDown}
        />
        {busy ? (
          <IconButton name="stop" label="Stop (Esc)" class="icon-button primary" onClick={state.stop} />
        ) : (
          <IconButton name="send" label="Send (Enter)" class="icon-button primary" onClick={send} />
        )}
      </div>
    </div>
  );
}
