/** Builds the page: `node build.mjs FOLDER`. The same sources and libraries give the same bytes. */

import { build } from "esbuild";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const web = import.meta.dirname;
const [folder] = process.argv.slice(2);
mkdirSync(folder, { recursive: true });

const { metafile } = await build({
  absWorkingDir: web,
  entryPoints: [
    { in: "src/main.tsx", out: "chat" },
    { in: "src/chat.css", out: "chat" },
  ],
  outdir: folder,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  charset: "utf8",
  // The licences are in a file of their own.
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});
for (const file of ["index.html", "icon.svg"]) copyFileSync(join(web, "src", file), join(folder, file));

// The libraries that are in the bundle, with their licences.
const packages = Object.keys(metafile.inputs).flatMap(
  (path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1] ?? [],
);
const notices = [...new Set(packages)].sort().map((name) => {
  const at = join(web, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(at, "package.json"), "utf8"));
  const texts = readdirSync(at).filter((file) => /^(licen[cs]e|notice)/i.test(file));
  if (texts.length === 0) throw new Error(`${name} has no licence file`);
  return [
    `${name} ${version} (${license})`,
    ...texts.sort().map((file) => readFileSync(join(at, file), "utf8").trim()),
  ].join("\n\n");
});
const rule = "\n\n" + "-".repeat(80) + "\n\n";
writeFileSync(
  join(folder, "THIRD_PARTY.txt"),
  ["The chat page contains these libraries, under these licences.", ...notices].join(rule) + "\n",
);
