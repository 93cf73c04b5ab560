import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { expect, test } from "./fixtures.ts";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

test.describe("on a phone", () => {
  test.use({ viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true });

  test("nothing is wider than the page", async ({ chat, page }) => {
    await chat.ask(`markdown, and a word: ${"long".repeat(100)}`);
    await expect(chat.answers().getByRole("table")).toBeVisible();
    expect(await chat.overflows()).toBe(false);
    await chat.button("Settings").tap();
    await expect(chat.dialog("Settings")).toBeVisible();
    expect(await chat.overflows()).toBe(false);
    const box = await chat.dialog("Settings").boundingBox();
    expect(box!.x >= 0 && box!.x + box!.width <= 360).toBe(true);
    await page.keyboard.press("Escape");
  });

  test("the list of conversations slides in", async ({ chat, page }) => {
    await chat.ask("hello");
    await expect(chat.list()).toBeHidden();
    await chat.button("Conversations").tap();
    await expect(chat.list().getByRole("listitem")).toHaveText(["hello"]);
    await expect(chat.button("New conversation")).toBeFocused();
    await page.keyboard.press("Escape");
    await expect(chat.list()).toBeHidden();
    await expect(chat.button("Conversations")).toBeFocused();
    await chat.button("Conversations").tap();
    await chat.button("New conversation").tap();
    await expect(chat.list()).toBeHidden();
    await expect(chat.turns()).toHaveCount(0);
  });
});

test("dark: as the system says, and by the switch", async ({ chat, page }) => {
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  expect(await background()).toBe("rgb(255, 255, 255)");
  await page.emulateMedia({ colorScheme: "dark" });
  const dark = await background();
  expect(dark).not.toBe("rgb(255, 255, 255)");
  await chat.button("Colours: auto").click();
  expect(await background()).toBe("rgb(255, 255, 255)");
  await chat.button("Colours: light").click();
  await page.emulateMedia({ colorScheme: "light" });
  await chat.reload();
  expect(await background()).toBe(dark);
  await expect(chat.button("Colours: dark")).toBeVisible();
});

for (const colorScheme of ["light", "dark"] as const) {
  test(`accessible: names, roles and contrast, ${colorScheme}`, async ({ chat, page }) => {
    await page.emulateMedia({ colorScheme });
    await chat.ask("think");
    await page.getByText("Thoughts").click();
    await chat.ask("markdown");
    const violations = async () => {
      // Not by a script element, which the policy forbids.
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => (window as any).axe.run());
      return violations.map((found: any) => `${found.id}: ${found.nodes.map((node: any) => node.html).join(" ")}`);
    };
    expect(await violations()).toEqual([]);
    await chat.button("Settings").click();
    expect(await violations()).toEqual([]);
  });
}

test("with the keyboard alone", async ({ chat, page }) => {
  const focused = () =>
    page.evaluate(
      () => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent?.trim() ?? "",
    );
  await expect(chat.field()).toBeFocused();
  await page.keyboard.type("hello");
  await page.keyboard.press("Enter");
  await chat.done();

  // The order of focus is that of the page.
  await page.locator(".skip").focus();
  const order = ["To the message field"];
  for (let at = 0; at < 13; at++) {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  expect(order).toEqual([
    "To the message field", "New conversation", "hello",
    "Model", "This conversation", "Settings", "Colours: auto", "Keyboard shortcuts",
    "Copy message", "Edit message", "Answer again", "Copy message", "Edit message", "Try again",
  ]); // prettier-ignore
  await page.keyboard.press("Tab");
  await expect(chat.field()).toBeFocused();

  await page.keyboard.press("ArrowUp");
  await page.keyboard.type(" again");
  await page.keyboard.press("Enter");
  await chat.done();
  await expect(chat.answers()).toContainText("You said: hello again");
  await expect(chat.field()).toBeFocused();

  await page.keyboard.press("Alt+r");
  await expect(chat.answers()).toContainText("2 of 2");
  await page.keyboard.press("Alt+n");
  await expect(chat.turns()).toHaveCount(0);
  await page.keyboard.type("more");
  await page.keyboard.press("Enter");
  await chat.done();
  await page.keyboard.press("Alt+PageDown");
  await expect(chat.answers()).toContainText("hello again");

  await page.keyboard.press("Alt+s");
  await expect(chat.dialog("Settings")).toBeVisible();
  await page.keyboard.press("Escape");
  await expect(chat.dialog("Settings")).toBeHidden();
  await expect(chat.field()).toBeFocused();
  await page.keyboard.press("Shift+Tab");
  const before = await focused();
  await page.keyboard.press("?");
  await expect(chat.dialog("Keyboard")).toContainText("New line");
  await page.keyboard.press("Escape");
  await expect(chat.dialog("Keyboard")).toBeHidden();
  // The browser hides a dialog before the page hears of it.
  await expect.poll(focused).toBe(before);
  await page.keyboard.press("/");
  await expect(chat.field()).toBeFocused();
});

test("the end stays in view unless the reader scrolls away", async ({ chat, page }) => {
  await page.setViewportSize({ width: 800, height: 400 });
  const pane = page.locator(".scroll");
  const distance = () => pane.evaluate((box) => box.scrollHeight - box.clientHeight - box.scrollTop);
  await chat.send("slowly");
  await expect(chat.answers()).toContainText("word150");
  await expect.poll(distance).toBeLessThan(40);
  await pane.hover();
  await page.mouse.wheel(0, -120);
  await expect(chat.button("To the end")).toBeVisible();
  await expect(chat.answers()).toContainText("word250");
  expect(await distance()).toBeGreaterThan(100);
  await chat.button("To the end").click();
  await expect(chat.button("To the end")).toBeHidden();
  await expect(chat.answers()).toContainText("word320");
  await expect.poll(distance).toBeLessThan(40);
});

test("of a long answer only the end is rendered again, and at most once a frame", async ({ chat, page }) => {
  await chat.ask("hello");
  await page.evaluate(() => {
    const seen = { frames: 0, changes: 0, touched: 0 };
    Object.assign(window, { seen });
    const tick = () => (seen.frames++, requestAnimationFrame(tick));
    requestAnimationFrame(tick);
    const count = (what: "changes" | "touched", node: Element) =>
      new MutationObserver(() => seen[what]++).observe(node, { subtree: true, childList: true, characterData: true });
    // The text of the turn before, and of a finished paragraph, is not to be rendered again.
    count("touched", document.querySelectorAll("article")[1]!.querySelector(".markdown")!);
    new MutationObserver((_, observer) => {
      const blocks = document.querySelectorAll("article:nth-of-type(4) .markdown > div");
      if (blocks.length < 3) return;
      observer.disconnect();
      count("touched", blocks[0]!);
      count("changes", blocks[0]!.parentElement!);
    }).observe(document.querySelector(".thread")!, { subtree: true, childList: true });
  });
  await chat.send("long");
  await expect(chat.asked()).toHaveCount(2);
  await chat.done(25_000);
  const { frames, changes, touched } = await page.evaluate(() => (window as any).seen);
  expect(touched).toBe(0);
  expect(changes).toBeGreaterThan(0);
  // About 5000 pieces arrived.
  expect(changes).toBeLessThan(frames);
});
