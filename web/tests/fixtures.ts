/** What every test of the page has: a server, the page opened on it, and a watch on what must never happen. */

import { test as base, expect, type Page } from "@playwright/test";
import { type Mock, startMock } from "./mock.ts";

export { expect };

export const test = base.extend<{ mock: Mock; chat: Chat; watch: void }>({
  // eslint-disable-next-line no-empty-pattern
  mock: async ({}, use) => {
    const mock = await startMock();
    await use(mock);
    await mock.close();
  },
  /** No script fails, nothing is asked of another host, and the content security policy has nothing to forbid. */
  watch: [
    async ({ page }, use) => {
      const seen = watch(page);
      await use();
      expect(seen).toEqual([]);
    },
    { auto: true },
  ],
  chat: async ({ page, mock }, use) => {
    await page.goto(mock.url);
    await use(new Chat(page));
  },
});

export function watch(page: Page): string[] {
  const seen: string[] = [];
  page.on("pageerror", (error) => seen.push(`error: ${error.message}`));
  page.on("console", (message) => {
    if (/content security policy/i.test(message.text())) seen.push(message.text());
  });
  page.on("request", (request) => {
    const { hostname, protocol } = new URL(request.url());
    if (hostname !== "127.0.0.1" && !["data:", "blob:"].includes(protocol)) seen.push(`request: ${request.url()}`);
  });
  return seen;
}

/** The page as its user sees it. */
export class Chat {
  constructor(readonly page: Page) {}
  field = () => this.page.getByRole("textbox", { name: "Message", exact: true });
  turns = () => this.page.getByRole("article");
  answers = () => this.page.getByRole("article", { name: "Model" });
  asked = () => this.page.getByRole("article", { name: "You" });
  button = (name: string) => this.page.getByRole("button", { name, exact: true });
  list = () => this.page.getByRole("navigation", { name: "Conversations" });
  dialog = (name: string) => this.page.getByRole("dialog", { name });

  /** Sends a message and leaves it to the caller to wait. */
  async send(text: string) {
    await this.field().fill(text);
    await this.field().press("Enter");
  }

  /** Sends a message and waits until it is answered. */
  async ask(text: string) {
    await this.send(text);
    await this.done();
  }

  async done(timeout = 5000) {
    await expect(this.button("Send (Enter)")).toBeVisible({ timeout });
    await expect(this.answers().last()).toHaveAttribute("aria-busy", "false");
  }

  /** Reloads the page, once what it is about to keep is kept: a busy machine may take longer for that than for a click. */
  async reload() {
    await this.page.evaluate(
      () =>
        new Promise<void>((resolve, reject) => {
          const opened = indexedDB.open("basert");
          opened.onerror = () => reject(new Error("the conversations cannot be opened"));
          opened.onsuccess = () => {
            // Transactions on a store follow each other.
            const reading = opened.result.transaction("conversations");
            reading.objectStore("conversations").count();
            reading.oncomplete = () => {
              opened.result.close();
              resolve();
            };
          };
        }),
    );
    await this.page.reload();
    await expect(this.field()).toBeVisible();
  }

  /** The file that exporting the conversation gives. */
  async exported(format: "Markdown" | "JSON") {
    await this.page.getByLabel("This conversation").click();
    const started = this.page.waitForEvent("download");
    await this.button(`Export as ${format}`).click();
    const download = await started;
    const chunks: Buffer[] = await (await download.createReadStream()).toArray();
    return { name: download.suggestedFilename(), text: Buffer.concat(chunks).toString() };
  }

  /** Whether something is wider than the page. */
  async overflows() {
    return this.page.evaluate(() => {
      const { scrollWidth, clientWidth } = document.documentElement;
      const pane = document.querySelector(".scroll")!;
      return scrollWidth > clientWidth || pane.scrollWidth > pane.clientWidth;
    });
  }
}
