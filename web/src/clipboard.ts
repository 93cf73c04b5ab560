/** Copies text. `navigator.clipboard` is missing on pages that came over plain HTTP, such as from another machine. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "offscreen";
    // Inside an open dialog nothing else can have the focus.
    const parent = document.querySelector("dialog[open]") ?? document.body;
    parent.append(area);
    const focused = document.activeElement;
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}
