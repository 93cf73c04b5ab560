/**
 * A server that answers like `basert serve`, with answers made up in advance: the test says in its message what it
 * wants to happen. It keeps the requests for tests to look at.
 */

import { readFileSync } from "node:fs";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const ASSETS = process.env.BASERT_WEB_ASSETS ?? join(import.meta.dirname, "../../crates/basert-server/assets");
const TYPES: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};
export const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/** One piece of an answer: text, a delta, a pause in milliseconds, or a way to fail. */
type Piece = string | { delta: object } | { pause: number } | { done: number } | { error: string } | { cut: true };

const words = (text: string): Piece[] => text.match(/\s*\S+/g) ?? [];

export const MARKDOWN = `# Heading

Some **bold** text, \`code\` and a [link](https://example.org/page).

| left | right |
| --- | --- |
| 1 | 2 |

\`\`\`rust
fn main() {
    println!("{}", "one long line ".repeat(40)); // ${"and on ".repeat(20)}
}
\`\`\`

1. one
2. two [later]

![a cat](https://example.org/cat.png)

[later]: https://example.org/later
`;

export const ATTACKS = `<script>window.pwned = 1</script>
<img src=x onerror="window.pwned = 2">
<svg onload="window.pwned = 3"><script>window.pwned = 4</script></svg>
<iframe srcdoc="<script>parent.pwned = 5</script>"></iframe>
<a href="javascript:window.pwned=6">raw</a> <style>body { display: none }</style>

[one](javascript:window.pwned=7) [two](JaVaScRiPt:window.pwned=8) [three](data:text/html,<script>window.pwned=9</script>)
[four](vbscript:msgbox) [five](&#106;avascript:window.pwned=10) [six](/v1/models) [seven](//example.org/x)
[eight](https://example.org/"onmouseover="window.pwned=11) <javascript:window.pwned=12>

![x](https://example.org/x.png "y\\" onerror=\\"window.pwned=13") ![svg](data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=) ![j](javascript:window.pwned=14)

\`\`\`"><img src=x onerror=window.pwned=15>
</code></pre><script>window.pwned = 16</script>
\`\`\`

\`\`\`html
<img src=x onerror="window.pwned = 17"><script>window.pwned = 18</script>
\`\`\`

<math><mtext><table><mglyph><style><img src=x onerror="window.pwned=19"></style></mglyph></table></mtext></math>

[ref]: javascript:window.pwned=20
[ref] [good](https://example.org/good)
`;

/** Blocks of every kind, next to and inside each other, without definitions that reach back. */
export const BLOCKS = `Title
=====

A paragraph
over two lines
- that a list interrupts
- with an item

  of two paragraphs

      and code in it
1. another list
2. * nested
     * deeper

   > a quote in a list
lazily continued

> quote
continued
> - list in it

    indented code

    and more of it

***
| a | b |
|---|:-:|
| 1 | *2* |
not a row

\`\`\`
unfinished \`\`
\`\`\`
~~~py
def f(): return "\`\`\`"
~~~
Second title
---
hard  
break and \\* escapes &amp; &copy; <b>no HTML</b> https://example.org/auto.
# \`code\` in a heading #
+ loose

+ list
`;

/** A long answer: prose and one long code block. */
const LONG = `${"A paragraph of some length, as answers have them, with *emphasis* and `code` in it.\n\n".repeat(300)}
\`\`\`typescript
${'export function add(a: number, b: number): number { return a + b + "text".length; }\n'.repeat(400)}\`\`\`
`;

function plan(text: string, tools: boolean): Piece[] {
  if (text.includes("slowly")) return Array.from({ length: 2000 }, (_, at) => [`word${at} `, { pause: 20 }]).flat();
  if (text.includes("attack")) return words(ATTACKS);
  if (text.includes("markdown")) return words(MARKDOWN);
  if (text.includes("blocks")) return (BLOCKS.match(/[^]{1,3}/g) ?? []).flatMap((piece) => [piece, { pause: 5 }]);
  if (text.includes("long"))
    return (LONG.match(/[^]{1,12}/g) ?? []).flatMap((piece, at) => (at % 20 ? [piece] : [{ pause: 10 }, piece]));
  if (text.includes("think")) {
    return [
      { delta: { reasoning_content: "Let me " } },
      { delta: { reasoning_content: "see." } },
      { pause: 100 },
      "Done.",
    ];
  }
  if (text.includes("tool") && tools) {
    const call = (part: object) => ({ delta: { tool_calls: [{ index: 0, ...part }] } });
    return [
      call({ id: "call_1", type: "function", function: { name: "weather", arguments: "" } }),
      call({ function: { arguments: '{"city":' } }),
      call({ function: { arguments: '"Oslo"}' } }),
    ];
  }
  if (text.includes("heavy")) return [{ done: 20 }, { pause: 1500 }, { done: 40 }, "Read."];
  if (text.includes("fail")) return ["Half an", { error: "the device was lost" }];
  if (text.includes("cut")) return ["Half an", { cut: true }];
  return words(`You said: ${text}`).flatMap((word) => [{ pause: 5 }, word]);
}

interface Body {
  model: string;
  messages: { role: string; content: string }[];
  tools?: unknown[];
  [field: string]: unknown;
}

export interface Mock {
  url: string;
  requests: Body[];
  /** How many answers were left by their reader. */
  left: number;
  /** Loses the connection of the answer that waits for it: a browser forgets what it had not shown by then. */
  cut(): void;
  close(): Promise<void>;
}

export async function startMock(key?: string): Promise<Mock> {
  const mock: Mock = { url: "", requests: [], left: 0, cut: () => {}, close: async () => {} };

  async function answer(body: Body, response: ServerResponse) {
    const last = body.messages.at(-1);
    const pieces =
      last?.role === "tool" ? words(`The tool says ${last.content}.`) : plan(last?.content ?? "", !!body.tools);
    response.writeHead(200, { "content-type": "text/event-stream" });
    const send = (event: object) => response.write(`data: ${JSON.stringify(event)}\n\n`);
    const chunk = (delta: object, finish_reason: string | null = null) =>
      send({ choices: [{ index: 0, delta, finish_reason }] });
    response.write(": keep-alive\n\n");
    chunk({ role: "assistant", content: "" });
    let count = 0;
    let called = false;
    for (const piece of pieces) {
      if (response.destroyed) {
        mock.left++;
        return;
      }
      if (typeof piece === "string") chunk({ content: piece });
      else if ("delta" in piece) chunk(piece.delta);
      else if ("pause" in piece) await sleep(piece.pause);
      else if ("done" in piece) send({ choices: [], prompt_progress: { total: 40, cache: 8, processed: piece.done } });
      else if ("error" in piece)
        return response.end(`data: ${JSON.stringify({ error: { message: piece.error } })}\n\n`);
      else {
        await new Promise<void>((cut) => (mock.cut = cut));
        return response.destroy();
      }
      called ||= typeof piece === "object" && "delta" in piece && "tool_calls" in piece.delta;
      if (typeof piece === "string" || "delta" in piece) count++;
    }
    chunk({}, called ? "tool_calls" : "stop");
    send({
      choices: [],
      usage: { prompt_tokens: 40, completion_tokens: count, prompt_tokens_details: { cached_tokens: 8 } },
    });
    response.end("data: [DONE]\n\n");
  }

  const server = createServer(async (request, response) => {
    const path = new URL(request.url ?? "", "http://mock").pathname;
    const json = (status: number, value: object) => {
      response.writeHead(status, { "content-type": "application/json" });
      response.end(JSON.stringify(value));
    };
    if (path.startsWith("/v1/")) {
      if (key && request.headers.authorization !== `Bearer ${key}`) {
        return json(401, { error: { message: "the API key is missing or wrong", type: "authentication_error" } });
      }
      if (path === "/v1/models") {
        return json(200, {
          object: "list",
          data: [
            {
              id: "small",
              context_length: mock.requests.length ? 4096 : null,
              default_sampling: { temperature: 0.7, top_p: 0.95, top_k: 40, min_p: 0.05 },
            },
            { id: "large" },
          ],
        });
      }
      const parts: Buffer[] = [];
      for await (const part of request) parts.push(part);
      const body = JSON.parse(Buffer.concat(parts).toString()) as Body;
      mock.requests.push(body);
      return answer(body, response);
    }
    const file = path === "/" ? "/index.html" : path;
    try {
      const bytes = readFileSync(join(ASSETS, file));
      response.writeHead(200, {
        "content-type": TYPES[extname(file)] ?? "text/plain",
        "content-security-policy": POLICY,
      });
      response.end(bytes);
    } catch {
      json(404, { error: { message: `there is no ${path}` } });
    }
  });
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  mock.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  mock.close = () => {
    server.closeAllConnections();
    return new Promise((closed) => server.close(() => closed()));
  };
  return mock;
}
