import { expect, test } from "./fixtures.ts";
import { startMock } from "./mock.ts";

test("a conversation", async ({ chat, mock }) => {
  await chat.ask("hello there");
  await expect(chat.answers()).toHaveText(/You said: hello there/);
  await chat.ask("and again");
  await expect(chat.answers().nth(1)).toContainText("You said: and again");
  // No speed: a busy machine may deliver the whole answer at once.
  await expect(chat.answers().nth(1)).toContainText(/4 tokens.*context 44 of 4096/);
  expect(mock.requests[1]).toEqual({
    model: "small",
    messages: [
      { role: "user", content: "hello there" },
      { role: "assistant", content: "You said: hello there" },
      { role: "user", content: "and again" },
    ],
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  });
});

test("what a long prompt is waited for", async ({ chat }) => {
  await chat.send("a heavy prompt");
  await expect(chat.answers()).toContainText("Reading the prompt: 50 %");
  await chat.done();
  await expect(chat.answers()).toContainText("Read.");
  await expect(chat.answers()).not.toContainText("Reading");
});

test("Enter sends, Shift+Enter does not, and an empty message is none", async ({ chat, mock }) => {
  await chat.field().press("Enter");
  await chat.field().pressSequentially("one");
  await chat.field().press("Shift+Enter");
  await chat.field().pressSequentially("two");
  expect(mock.requests).toHaveLength(0);
  await chat.field().press("Enter");
  await chat.done();
  expect(mock.requests.map(({ messages }) => messages)).toEqual([[{ role: "user", content: "one\ntwo" }]]);
});

test("stop: by the button and by Esc; what there is stays, and the server knows", async ({ chat, mock }) => {
  await chat.send("slowly");
  await expect(chat.answers()).toContainText("word3");
  await chat.button("Stop (Esc)").click();
  await chat.done();
  await expect(chat.answers()).toContainText("Stopped");
  const text = await chat.answers().innerText();

  await chat.send("slowly again");
  await expect(chat.answers().nth(1)).toContainText("word3");
  await chat.field().press("Escape");
  await chat.done();
  expect(await chat.answers().first().innerText()).toBe(text);
  await expect.poll(() => mock.left).toBe(2);
});

test("reload keeps the conversation, and what there was of an unfinished answer", async ({ chat }) => {
  await chat.ask("first");
  await chat.send("slowly");
  await expect(chat.answers().nth(1)).toContainText("word80");
  await chat.reload();
  await expect(chat.asked()).toHaveText(["first", "slowly"]);
  await expect(chat.answers().first()).toContainText("You said: first");
  await expect(chat.answers().nth(1)).toContainText(/word30.*Interrupted/s);
  await chat.ask("going on");
  await expect(chat.answers().nth(2)).toContainText("You said: going on");
});

test("edit and retry make alternatives that can be gone back to", async ({ chat, mock }) => {
  await chat.ask("first");
  await chat.ask("second");

  await chat.asked().first().getByRole("button", { name: "Edit message" }).click();
  await chat.page.getByRole("textbox", { name: "Edit the message" }).fill("changed");
  await chat.page.keyboard.press("Enter");
  await chat.done();
  await expect(chat.asked()).toHaveText([/changed/]);
  expect(mock.requests.at(-1)?.messages).toEqual([{ role: "user", content: "changed" }]);

  await chat.asked().getByRole("button", { name: "Previous alternative" }).click();
  await expect(chat.asked()).toHaveText([/first/, /second/]);

  await chat.answers().first().getByRole("button", { name: "Try again" }).click();
  await chat.done();
  await expect(chat.turns()).toHaveCount(2);
  await expect(chat.answers()).toContainText("2 of 2");
  expect(mock.requests.at(-1)?.messages).toEqual([{ role: "user", content: "first" }]);

  await chat.answers().getByRole("button", { name: "Edit message" }).click();
  await chat.page.getByRole("textbox", { name: "Edit the message" }).fill("put in its mouth");
  await chat.button("Keep").click();
  await expect(chat.answers()).toContainText("3 of 3");
  await chat.reload();
  await expect(chat.answers()).toHaveText(/put in its mouth.*3 of 3/s);
  await chat.ask("next");
  expect(mock.requests.at(-1)?.messages[1]).toEqual({ role: "assistant", content: "put in its mouth" });
});

test("settings go with every request, and stay", async ({ chat, mock }) => {
  await chat.button("Settings").click();
  const dialog = chat.dialog("Settings");
  await expect(dialog.getByLabel("Temperature")).toHaveAttribute("placeholder", "default: 0.7");
  await expect(dialog.getByLabel("Seed")).toHaveAttribute("placeholder", "default");
  await dialog.getByLabel("System prompt").fill("Be brief.");
  const values = { Temperature: 0.5, "Top p": 0.9, "Top k": 40, "Min p": 0.05, "Max tokens": 100, Seed: 7 };
  for (const [name, value] of Object.entries(values)) await dialog.getByLabel(name).fill(String(value));
  await dialog.getByLabel("Thinking").selectOption("off");
  await dialog.getByRole("button", { name: "Save" }).click();
  await chat.page.getByLabel("Model").selectOption("large");
  await chat.ask("hello");
  await chat.reload();
  await chat.ask("hello");
  for (const request of mock.requests) {
    expect(request).toMatchObject({
      model: "large",
      temperature: 0.5,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.05,
      max_completion_tokens: 100,
      seed: 7,
      enable_thinking: false,
    });
    expect(request.messages[0]).toEqual({ role: "system", content: "Be brief." });
  }
});

test("settings that no server takes are refused in the dialog", async ({ chat }) => {
  await chat.button("Settings").click();
  const dialog = chat.dialog("Settings");
  await dialog.getByLabel("Temperature").fill("9");
  await dialog.getByRole("button", { name: "Save" }).click();
  await expect(dialog).toBeVisible();
  await dialog.getByLabel("Temperature").fill("");
  await dialog.getByText("Tools", { exact: true }).click();
  await dialog.getByLabel("Definitions").fill("{");
  await dialog.getByRole("button", { name: "Save" }).click();
  await expect(dialog.getByRole("alert")).toContainText("Tools:");
});

test("thinking is folded", async ({ chat, mock }) => {
  await chat.ask("think");
  await expect(chat.answers()).toContainText("Done.");
  await expect(chat.answers()).not.toContainText("Let me see.");
  await chat.page.getByText("Thoughts").click();
  await expect(chat.answers()).toContainText("Let me see.");
  await chat.ask("next");
  expect(mock.requests[1]?.messages[1]).toEqual({
    role: "assistant",
    content: "Done.",
    reasoning_content: "Let me see.",
  });
});

test("tool calls are folded, and take a result", async ({ chat, mock }) => {
  const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }];
  await chat.button("Settings").click();
  await chat.dialog("Settings").getByText("Tools", { exact: true }).click();
  await chat.dialog("Settings").getByLabel("Definitions").fill(JSON.stringify(tools));
  await chat.dialog("Settings").getByRole("button", { name: "Save" }).click();
  await chat.ask("use the tool");
  expect(mock.requests[0]?.tools).toEqual(tools);
  await chat.page.getByText("Tool call: weather").click();
  await expect(chat.answers()).toContainText('{ "city": "Oslo" }');
  await chat.page.getByLabel("Result of weather").fill("rain");
  await chat.button("Give result").click();
  await expect(chat.answers().nth(1)).toContainText("The tool says rain.");
  expect(mock.requests[1]?.messages.slice(1)).toEqual([
    {
      role: "assistant",
      content: "",
      tool_calls: [{ id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Oslo"}' } }],
    },
    { role: "tool", tool_call_id: "call_1", content: "rain" },
  ]);
});

test("failures are shown where they happen, and can be tried again", async ({ chat, mock, page }) => {
  await chat.ask("fail");
  await expect(chat.answers().getByRole("alert")).toHaveText("the device was lost");
  await chat.send("cut");
  await expect(chat.answers().nth(1)).toContainText("Half an");
  mock.cut();
  await chat.done();
  await expect(chat.answers().nth(1)).toContainText(/Half an.*connection was lost/s);
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await chat.ask("unheard");
  await expect(chat.answers().nth(2)).toContainText("The server cannot be reached.");
  await page.unroute("**/v1/chat/completions");
  await chat.answers().nth(2).getByRole("button", { name: "Try again" }).click();
  await expect(chat.answers().nth(2)).toContainText("You said: unheard");
  await expect(chat.answers().nth(2)).not.toContainText("1 of 2");
  expect(mock.requests).toHaveLength(3);
});

test("a server with keys is asked again with the user's", async ({ page }) => {
  const mock = await startMock("sesame");
  await page.goto(mock.url);
  const dialog = page.getByRole("dialog", { name: "API key" });
  await dialog.getByLabel("Key", { exact: true }).fill("wrong");
  await dialog.getByRole("button", { name: "Use" }).click();
  await dialog.getByLabel("Key", { exact: true }).fill("sesame");
  await dialog.getByRole("button", { name: "Use" }).click();
  await expect(dialog).toBeHidden();
  await expect(page.getByLabel("Model")).toHaveValue("small");
  await page.reload();
  await expect(page.getByLabel("Model")).toHaveValue("small");
  expect(await page.evaluate(() => JSON.stringify(localStorage))).not.toContain("sesame");
  await mock.close();
});

test("conversations: a list, renaming, export, deletion", async ({ chat, page }) => {
  await chat.ask("about cats");
  await chat.button("New conversation").click();
  await expect(chat.turns()).toHaveCount(0);
  await chat.ask("about dogs");
  await expect(chat.list().getByRole("listitem")).toHaveText(["about dogs", "about cats"]);

  await chat.list().getByText("about cats").click();
  await expect(chat.answers()).toContainText("You said: about cats");
  await page.getByLabel("This conversation").click();
  await chat.button("Rename").click();
  await chat.dialog("Rename").getByLabel("Title").fill("Felines");
  await page.keyboard.press("Enter");
  await expect(chat.list().getByRole("listitem")).toHaveText(["about dogs", "Felines"]);
  await expect(page).toHaveTitle(/Felines/);

  expect(await chat.exported("Markdown")).toEqual({
    name: "Felines.md",
    text: "# Felines\n\n## You\n\nabout cats\n\n## small\n\nYou said: about cats\n",
  });
  const { name, text } = await chat.exported("JSON");
  expect(name).toBe("Felines.json");
  expect(JSON.parse(text)).toMatchObject({
    title: "Felines",
    messages: [{ content: "about cats" }, { role: "assistant" }],
  });

  await page.getByLabel("This conversation").click();
  await chat.button("Delete").click();
  await chat.dialog("Delete").getByRole("button", { name: "Delete" }).click();
  await expect(chat.list().getByRole("listitem")).toHaveText(["about dogs"]);
  await chat.reload();
  await expect(chat.list().getByRole("listitem")).toHaveText(["about dogs"]);
});

test("a conversation that is deleted while it is answered stays deleted", async ({ chat, page }) => {
  await chat.send("slowly");
  await expect(chat.answers()).toContainText("word80");
  await page.getByLabel("This conversation").click();
  await chat.button("Delete").click();
  await chat.dialog("Delete").getByRole("button", { name: "Delete" }).click();
  await expect(chat.turns()).toHaveCount(0);
  await page.waitForTimeout(1500);
  await chat.reload();
  await expect(chat.list().getByRole("listitem")).toHaveCount(0);
});

test("another tab shows what was said in this one", async ({ chat, context, mock }) => {
  const other = await context.newPage();
  await other.goto(mock.url);
  await expect(other.getByLabel("Model")).toHaveValue("small");
  await chat.ask("hello");
  await expect(other.getByRole("listitem")).toHaveText(["hello"]);
});

test("Markdown: blocks, highlighted code, copying", async ({ chat, page }) => {
  await page.evaluate(() => {
    Object.assign(window, { copied: "" });
    Object.defineProperty(navigator, "clipboard", {
      value: { writeText: async (text: string) => Object.assign(window, { copied: text }) },
    });
  });
  await chat.ask("markdown");
  const answer = chat.answers();
  await expect(answer.getByRole("heading", { name: "Heading" })).toBeVisible();
  await expect(answer.getByRole("table")).toContainText("left");
  await expect(answer.locator(".hljs-keyword")).toHaveText(["fn"]);
  for (const [name, href] of [
    ["link", "page"],
    ["later", "later"],
    ["a cat", "cat.png"],
  ] as const) {
    const link = answer.getByRole("link", { name });
    await expect(link).toHaveAttribute("href", `https://example.org/${href}`);
    await expect(link).toHaveAttribute("rel", "noopener noreferrer");
    await expect(link).toHaveAttribute("target", "_blank");
  }
  await answer.getByRole("button", { name: "Copy", exact: true }).click();
  await expect(answer.getByRole("button", { name: "Copied" })).toBeVisible();
  expect(await page.evaluate("copied")).toMatch(/^fn main\(\) \{\n    println!/);
  await answer.getByRole("button", { name: "Copy message" }).click();
  expect(await page.evaluate("copied")).toMatch(/^# Heading\n/);
});

test("an answer that came piece by piece looks like one read at once", async ({ chat }) => {
  const html = () => chat.answers().locator(".markdown").innerHTML();
  await chat.send("blocks");
  await expect(chat.answers().locator("blockquote")).toHaveCount(2);
  await chat.done();
  const streamed = await html();
  expect(streamed).toContain("<h2>Second title</h2>");
  expect(streamed).toContain('<td class="center"><em>2</em></td>');
  await chat.reload();
  await expect(chat.answers()).toBeVisible();
  expect(await html()).toBe(streamed);
});

test("copying without the clipboard API, as over plain HTTP", async ({ chat, page }) => {
  await page.evaluate(() => {
    Object.defineProperty(navigator, "clipboard", { value: undefined });
    document.addEventListener("copy", () => Object.assign(window, { copied: String(document.getSelection()) }));
  });
  await chat.ask("hello");
  await chat.answers().getByRole("button", { name: "Copy message" }).click();
  expect(await page.evaluate("copied")).toBe("You said: hello");
});

test("nothing in a model's output is run, loaded or linked but to other pages", async ({ chat, page }) => {
  await chat.ask("attack");
  const answer = chat.answers();
  await expect(answer).toContainText("<script>window.pwned = 1</script>");
  const links = await answer.getByRole("link").evaluateAll((all) => all.map((link) => link.getAttribute("href")));
  expect(links.length).toBeGreaterThan(1);
  for (const href of links) expect(href).toMatch(/^https:\/\/example\.org\//);
  expect(
    await answer
      .locator("img, svg:not(.icon), script, iframe, style, math, object, [style], [onerror], [onload], [onmouseover]")
      .count(),
  ).toBe(0);
  for (const link of await answer.getByRole("link").all()) await link.hover();
  expect(await page.evaluate("window.pwned")).toBeUndefined();
  // And neither after it has been kept and read again.
  await chat.reload();
  await expect(answer).toContainText("window.pwned = 1");
  expect(await page.evaluate("window.pwned")).toBeUndefined();
});

test("a user's own message is text", async ({ chat, page }) => {
  await chat.ask("<img src=x onerror=window.pwned=1> **not bold**");
  await expect(chat.asked()).toHaveText("<img src=x onerror=window.pwned=1> **not bold**");
  expect(await page.evaluate("window.pwned")).toBeUndefined();
});
