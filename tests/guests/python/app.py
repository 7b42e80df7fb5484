"""An agent in Python, against the same interface as every other.

Build it, in this directory, with Python 3.10 or newer:

    pip install componentize-py==0.25.1
    componentize-py -d ../../../wit -w agent componentize app -o python.wasm

Then put `python.wasm` among the agents that a host serves, and see:

    curl http://127.0.0.1:8787/agents/python/demo/status
    curl -N 'http://127.0.0.1:8787/agents/python/demo/stream?steps=3'
"""

import json
from urllib.parse import parse_qs, urlsplit

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import monotonic_clock, state
from wit_world.imports.bureau_agent_types import (
    AgentError_BadRequest,
    Body_Bytes,
    EmitError_Backlogged,
    Event,
    Header,
    Reply,
    Reply_Events,
    Reply_Response,
    Request,
    Response,
)
from wit_world.imports.runs import Run

MILLISECOND = 1_000_000

class Handler(exports.Handler):
    async def on_request(self, run: Run, request: Request) -> Reply:
        target = urlsplit(request.path)
        if target.path == "/status":
            return status()
        if target.path == "/stream":
            return await stream(run, parse_qs(target.query))
        return respond(404, "text/plain", "Not found")


def status() -> Reply:
    """Counts its calls in the durable state."""
    calls = json.loads(state.get() or "0") + 1
    state.set(json.dumps(calls))
    return respond(200, "application/json", json.dumps({"status": "ok", "calls": calls}))


async def stream(run: Run, query: dict[str, list[str]]) -> Reply:
    """Emits its steps as events."""
    try:
        steps = int(query.get("steps", ["5"])[0])
        delay = int(query.get("delay", ["500"])[0])
    except ValueError as fault:
        raise Err(AgentError_BadRequest(str(fault)))
    for step in range(1, steps + 1):
        await monotonic_clock.wait_for(delay * MILLISECOND)
        await emit(run, Event(name=None, data=f"Step {step} complete", id=None))
    return Reply_Events()


async def emit(run: Run, event: Event) -> int:
    """Emits an event, and waits first while too much of the run is not durable yet."""
    while True:
        try:
            return run.emit_event(event)
        except Err as error:
            if not isinstance(error.value, EmitError_Backlogged):
                raise
        await run.flush()


def respond(code: int, content_type: str, body: str) -> Reply:
    headers = [Header("content-type", content_type)]
    return Reply_Response(Response(code, headers, Body_Bytes(body.encode())))
