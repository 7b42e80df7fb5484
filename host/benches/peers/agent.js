// The paths of `tests/guests/examples/load.rs` as an agent of Cloudflare's Agents SDK: what its README would have one write.
// Its state is durable before the reply leaves; its events are not, and nobody can come back for them.

import { Agent, routeAgentRequest } from "agents";

const GREETING = { status: "ok", message: "a small reply of some bytes" };

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
        return events(Number(searchParams.get("n")), Number(searchParams.get("size")));
      case "hold":
        return stream({ start: (events) => events.enqueue(encoder.encode(":\n")) });
      default:
        return new Response(null, { status: 404 });
    }
  }
}

/** As many events as asked for, at once: each when it is taken would be a hundred times slower. */
function events(n, size) {
  const data = ".".repeat(size);
  return stream({
    start(events) {
      for (let seq = 1; seq <= n; seq += 1) {
        events.enqueue(encoder.encode(`id: 01J00000000000000000000000-${seq}\ndata: ${data}\n\n`));
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
