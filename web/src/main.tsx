import { effect } from "@preact/signals";
import { render } from "preact";
import { App } from "./app.tsx";
import { onKeyDown } from "./shortcuts.ts";
import { current, start } from "./state.ts";

document.addEventListener("keydown", onKeyDown);
effect(() => {
  document.title = current.value.title ? `${current.value.title} · basert` : "basert";
});
await start();
render(<App />, document.body);
