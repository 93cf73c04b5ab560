/**
 * The page on `basert serve` with a real model: the command is $BASERT, the model $BASERT_MODEL, as `tools/web-test` has
 * it. With $BASERT_SCREENSHOT a picture of the page is written to that file.
 */

import { test as base } from "@playwright/test";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { Chat, expect, watch } from "./fixtures.ts";
import { POLICY } from "./mock.ts";

interface Server {
  url: string;
  stop(): Promise<void>;
}

async function serve(...options: string[]): Promise<Server> {
  const { BASERT, BASERT_MODEL } = process.env;
  if (!BASERT || !BASERT_MODEL) throw new Error("BASERT and BASERT_MODEL have to name the command and a model");
  const args = ["serve", BASERT_MODEL, "--port", "0", "--device", "cpu", ...options];
  const child = spawn(BASERT, args, { stdio: ["ignore", "ignore", "pipe"] });
  const ended = once(child, "exit");
  const said: string[] = [];
  for await (const line of createInterface(child.stderr)) {
    said.push(line);
    const url = line.match(/^serving .* at (http:\S+)/)?.[1];
    if (!url) continue;
    // What it says from now on is for nobody.
    child.stderr.resume();
    return {
      url: `${url}/`,
      stop: async () => {
        child.kill("SIGTERM");
        await ended;
      },
    };
  }
  throw new Error(`the server did not start:\n${said.join("\n")}`);
}

const test = base.extend<{ chat: Chat }, { server: Server }>({
  server: [
    // eslint-disable-next-line no-empty-pattern
    async ({}, use) => {
      const server = await serve();
      await use(server);
      await server.stop();
    },
    { scope: "worker", timeout: 120_000 },
  ],
  chat: async ({ page, server }, use) => {
    const seen = watch(page);
    await page.goto(server.url);
    const chat = new Chat(page);
    await chat.button("Settings").click();
    await chat.dialog("Settings").getByLabel("Temperature").fill("0");
    await chat.dialog("Settings").getByLabel("Max tokens").fill("60");
    await chat.dialog("Settings").getByRole("button", { name: "Save" }).click();
    await use(chat);
    expect(seen).toEqual([]);
  },
});

test.describe.configure({ mode: "serial", timeout: 120_000 });

const LONG = 60_000;

test("the page comes with its policy", async ({ request, server }) => {
  const page = await request.get(server.url);
  expect(page.headers()["content-type"]).toMatch(/^text\/html/);
  expect(page.headers()["content-security-policy"]).toBe(POLICY);
  expect(page.headers()["x-content-type-options"]).toBe("nosniff");
  for (const file of ["chat.js", "chat.css", "icon.svg"])
    expect((await request.get(server.url + file)).status()).toBe(200);
});

test("answers are the server's, and stay over a reload", async ({ chat, request, server }) => {
  await chat.send("Explain in two sentences why the sky is blue.");
  await chat.done(LONG);
  await expect(chat.answers()).toContainText(/tokens\/s.*tokens.*context \d+ of \d+/);
  await chat.send("And why is the sea?");
  await chat.done(LONG);
  const texts = await chat.answers().allInnerTexts();
  await chat.reload();
  await expect(chat.answers()).toHaveCount(2);
  expect(await chat.answers().allInnerTexts()).toEqual(texts);

  const { text } = await chat.exported("JSON");
  const turns: { role: string; content: string }[] = JSON.parse(text).messages;
  const messages = turns.map(({ role, content }) => ({ role, content }));
  for (const at of [1, 3]) {
    const data = { messages: messages.slice(0, at), temperature: 0, max_completion_tokens: 60 };
    const answer = await (await request.post(`${server.url}v1/chat/completions`, { data })).json();
    expect(answer.choices[0].message.content).toBe(messages[at]?.content);
  }
});

test("stop, edit, and another try", async ({ chat, page }) => {
  await chat.button("Settings").click();
  await chat.dialog("Settings").getByLabel("Max tokens").fill("4000");
  await chat.dialog("Settings").getByRole("button", { name: "Save" }).click();
  await chat.send("Write a haiku about the sea.");
  await expect(chat.answers()).toContainText("waves", { timeout: LONG });
  await chat.field().press("Escape");
  await chat.done();
  await expect(chat.answers()).toContainText("Stopped");

  await chat.asked().getByRole("button", { name: "Edit message" }).click();
  await page.getByRole("textbox", { name: "Edit the message" }).fill("Explain in one sentence why the sky is blue.");
  await page.keyboard.press("Enter");
  await chat.done(LONG);
  const first = await chat.answers().locator(".markdown").innerText();
  await chat.answers().getByRole("button", { name: "Try again" }).click();
  await chat.done(LONG);
  await expect(chat.answers()).toContainText("2 of 2");
  // At temperature 0 there is one answer.
  expect(await chat.answers().locator(".markdown").innerText()).toBe(first);
});

test("what the server refuses is said", async ({ chat }) => {
  await chat.send("word ".repeat(20_000));
  await chat.done(LONG);
  await expect(chat.answers().getByRole("alert")).toContainText("tokens");
});

test("a key", async ({ page }) => {
  const server = await serve("--api-key", "sesame");
  await page.goto(server.url);
  const dialog = page.getByRole("dialog", { name: "API key" });
  await dialog.getByLabel("Key", { exact: true }).fill("sesame");
  await dialog.getByRole("button", { name: "Use" }).click();
  await expect(dialog).toBeHidden();
  await expect(page.getByLabel("Model")).not.toHaveValue("");
  await server.stop();
});

test("a picture for the documentation", async ({ chat, page }) => {
  await page.setViewportSize({ width: 1080, height: 900 });
  await chat.button("Settings").click();
  await chat.dialog("Settings").getByLabel("Max tokens").fill("400");
  await chat.dialog("Settings").getByRole("button", { name: "Save" }).click();
  await chat.send("Explain in two sentences why the sky is blue.");
  await chat.done(LONG);
  await chat.send("Show a short Python example that reads a file line by line.");
  await chat.done(LONG);
  await expect(chat.answers().locator(".hljs-keyword").first()).toHaveText("def");
  const path = process.env.BASERT_SCREENSHOT;
  if (path) await page.screenshot({ path, animations: "disabled", caret: "hide" });
});
