/**
 * The payloads of a stream of server-sent events: the `data` of each event, its lines joined. Comments, which servers
 * send to keep a connection open, and all other fields are passed over, as the chat API uses `data` alone.
 */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A carriage return at the end of a chunk may be the first half of a line's end.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
        } else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
      // An event without the empty line that ends it is incomplete, and dropped as the standard says.
      if (done) return;
    }
  } finally {
    // Nobody listens any more: let the server know.
    await reader.cancel().catch(() => {});
  }
}
