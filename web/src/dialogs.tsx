/** The dialogs: one is open at a time, and `state.dialog` says which. */

import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { NUMBERS } from "./conversation.ts";
import { IconButton } from "./icons.tsx";
import { SHORTCUTS } from "./shortcuts.ts";
import * as state from "./state.ts";
import type { Settings } from "./types.ts";

const close = () => (state.dialog.value = null);

/** A dialog; `submit` is what its main button does, and may refuse by returning false. */
function Dialog({
  title,
  action,
  submit,
  children,
}: {
  title: string;
  action: string;
  submit: (form: FormData) => boolean | void;
  children: ComponentChildren;
}) {
  const box = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const [dialog, before] = [box.current, document.activeElement];
    dialog?.showModal();
    return () => {
      // When the browser closed it, focus went back at once, and may have moved on since.
      const inside = dialog?.contains(document.activeElement) || document.activeElement === document.body;
      if (inside && before instanceof HTMLElement) before.focus();
    };
  }, []);
  return (
    <dialog ref={box} aria-labelledby="dialog-title" onClose={close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (submit(new FormData(event.currentTarget)) !== false) close();
        }}
      >
        <header>
          <h2 id="dialog-title">{title}</h2>
          <IconButton name="close" label="Close" onClick={close} />
        </header>
        {children}
        <div class="row">
          <button class="primary">{action}</button>
        </div>
      </form>
    </dialog>
  );
}

function toolsProblem(text: string): string {
  if (!text.trim()) return "";
  try {
    return Array.isArray(JSON.parse(text)) ? "" : "This has to be a JSON array of tools.";
  } catch (error) {
    return (error as Error).message;
  }
}

function SettingsDialog() {
  const { settings, model } = state.current.value;
  const defaults = state.defaultsOf(model);
  const problem = useSignal("");
  const submit = (form: FormData) => {
    problem.value = toolsProblem(String(form.get("tools")));
    if (problem.value) return false;
    const entries = Object.keys(settings).map((key) => [key, String(form.get(key) ?? "")]);
    state.setSettings(Object.fromEntries(entries) as Settings);
  };
  return (
    <Dialog title="Settings" action="Save" submit={submit}>
      <label>
        System prompt
        <textarea name="system" rows={4} defaultValue={settings.system} />
      </label>
      <div class="numbers">
        {NUMBERS.map(({ key, label, help, min, max, step }) => (
          <label key={key}>
            {label}
            <input
              name={key}
              type="number"
              inputMode="decimal"
              {...{ min, max, step }}
              placeholder={defaults?.[key] === undefined ? "default" : `default: ${defaults[key]}`}
              defaultValue={settings[key]}
              aria-describedby={`help-${key}`}
            />
            <small id={`help-${key}`}>{help}</small>
          </label>
        ))}
      </div>
      <label>
        Thinking
        <select name="enable_thinking" value={settings.enable_thinking}>
          <option value="">as the model is used to</option>
          <option value="true">on</option>
          <option value="false">off</option>
        </select>
      </label>
      <details class="fold" open={settings.tools !== ""}>
        <summary>Tools</summary>
        <label class="fold-body">
          Definitions, as in the API's <code>tools</code>
          <textarea class="code-input" name="tools" rows={6} spellcheck={false} defaultValue={settings.tools} />
        </label>
      </details>
      {problem.value && (
        <p class="error" role="alert">
          Tools: {problem.value}
        </p>
      )}
    </Dialog>
  );
}

function HelpDialog() {
  return (
    <Dialog title="Keyboard" action="Close" submit={() => {}}>
      <dl class="shortcuts">
        {SHORTCUTS.map(({ keys, does }) => (
          <div key={keys}>
            <dt>
              {keys.split("+").map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{does}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}

function KeyDialog() {
  return (
    <Dialog
      title="API key"
      action="Use"
      submit={(form) => state.setKey(String(form.get("key")).trim(), form.has("keep"))}
    >
      <p>The server asks for a key: one of those that it was started with.</p>
      <label>
        Key
        <input name="key" type="password" autocomplete="off" required />
      </label>
      <label class="check">
        <input name="keep" type="checkbox" /> Keep it in this browser
      </label>
    </Dialog>
  );
}

function RenameDialog() {
  return (
    <Dialog title="Rename" action="Rename" submit={(form) => state.rename(String(form.get("title")))}>
      <label>
        Title
        <input name="title" required defaultValue={state.current.value.title} />
      </label>
    </Dialog>
  );
}

function DeleteDialog() {
  return (
    <Dialog title="Delete" action="Delete" submit={() => void state.discard()}>
      <p>“{state.current.value.title}” will be gone for good.</p>
    </Dialog>
  );
}

const DIALOGS = {
  settings: SettingsDialog,
  help: HelpDialog,
  key: KeyDialog,
  rename: RenameDialog,
  delete: DeleteDialog,
};

export function OpenDialog() {
  const Open = state.dialog.value && DIALOGS[state.dialog.value];
  return Open && <Open />;
}
