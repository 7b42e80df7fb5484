// The paths of `tests/guests/examples/load.rs` as an agent of Cloudflare's Agents SDK: what its README would have one write.
// Its state is durable before the reply leaves; its events are not, and nobody can come back for them.

import { Agent, routeAgentRequest } from "agents";

const GREETING = { status: "ok", message: "a small reply of some bytes" };

const RUN = "01J00000000000000000000000";

const encoder = new TextEncoder();

export class Load extends Agent {
  async onRequest(request) {
    const { pathname, searchParams } = new URL(request.url);
    switch (pathname.split("/").pop()) {
      case "plain":
        return Response.json(GREETING);
      case "state":
        this.setState({ visits: (this.state?.visits ?? 0) + 1, note: "a small document" });
        return Response.json(GREETING);
      case "events":
        return events(...["n", "size", "delay"].map((name) => Number(searchParams.get(name))));
      case "hold":
        return stream({ start: (events) => events.enqueue(encoder.encode(":\n")) });
      default:
        return new Response(null, { status: 404 });
    }
  }
}

/**
 * As many events as asked for. Without a delay all at once: each when it is taken would be a hundred times slower. With one, they
 * say when they were made, in nanoseconds, of which the clock here knows the milliseconds.
 */
function events(n, size, delay) {
  const begun = Date.now();
  const due = (seq) => begun + delay * (seq - 1) - Date.now();
  const now = () => `${Date.now()}000000`.padEnd(size, ".");
  const data = ".".repeat(size);
  const frame = (seq, data) => encoder.encode(`id: ${RUN}-${seq}\ndata: ${data}\n\n`);
  return stream({
    async start(events) {
      for (let seq = 1; seq <= n; seq += 1) {
        if (delay) await new Promise((resolve) => setTimeout(resolve, due(seq)));
        events.enqueue(frame(seq, delay ? now() : data));
      }
      events.close();
    },
  });
}

const stream = (source) =>
  new Response(new ReadableStream(source), { headers: { "content-type": "text/event-stream" } });

export default {
  fetch: async (request, env) =>
    (await routeAgentRequest(request, env)) ?? new Response(null, { status: 404 }),
};
