import { defineConfig } from "@playwright/test";
import { mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

/** The browser: the one that is named, or on Linux one that comes as an npm package, or else Chrome. */
async function browser() {
  const named = process.env.BASERT_CHROMIUM;
  if (named) return { launchOptions: { executablePath: named } };
  if (process.platform !== "linux") return { channel: "chrome" };
  // The package unpacks itself into the folder for temporary files.
  const folder = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "basert/chromium");
  mkdirSync(folder, { recursive: true });
  const before = process.env.TMPDIR;
  process.env.TMPDIR = folder;
  const { default: chromium } = await import("@sparticuz/chromium");
  const executablePath = await chromium.executablePath();
  if (before === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = before;
  return { launchOptions: { executablePath, args: ["--disable-quic", "--disable-background-networking"] } };
}

export default defineConfig({
  testDir: "tests",
  testIgnore: process.env.BASERT ? [] : "server.spec.ts",
  outputDir: join(process.env.BASERT_WEB_OUTPUT ?? "node_modules/.cache", "test-results"),
  workers: 2,
  fullyParallel: true,
  forbidOnly: true,
  timeout: 60_000,
  expect: { timeout: 15_000 },
  reporter: "list",
  use: {
    ...(await browser()),
    viewport: { width: 1100, height: 800 },
    colorScheme: "light",
    trace: "retain-on-failure",
  },
});
