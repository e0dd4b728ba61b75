"""A language model behind the chat-completions protocol, on this machine: well-behaved but for the faults it is given."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answer(question: str) -> dict[str, Any]:
    """What a well-behaved model says."""
    if "Replacements: " in question:
        prompts = json.loads(re.search(r"^Prompts by id: (.*)$", question, re.M)[1])  # type: ignore[index]
        names = json.loads(re.search(r"^Replacements: (.*)$", question, re.M)[1])  # type: ignore[index]
        return {"mappings": {i: {n: p.replace("golf ball", n) for n in names} for i, p in prompts.items()}}
    if question.startswith("Write"):
        count, name = re.match(r'Write (\d+) prompts that show "([^"]+)"', question).groups()  # type: ignore[union-attr]
        first = question.count(f"scene {name} ")
        return {"prompts": [f"scene {name} number {first + i}" for i in range(int(count))]}
    own = re.match(r'The concept is "([^"]+)"', question)
    names = {
        "related": ["tennis ball", *(f"toy {i}" for i in range(20))],
        "unrelated": [f"place {i}" for i in range(21)],
    }
    return {key: [n for n in found if own is None or n != own[1]][:20] for key, found in names.items()}


class Server(ThreadingHTTPServer):
    """`faults` are served first, one to a request, then the well-behaved model."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[Callable[[Handler], None]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.asked.append(request)
        self.server.keys.append(self.headers["Authorization"])
        if self.server.faults:
            self.server.faults.pop(0)(self)
        else:
            self.say(json.dumps(answer(request["messages"][1]["content"])))

    def say(self, content: Any, finish: str = "stop", **message: str) -> None:
        said = {"role": "assistant", "content": content, **message}
        self.body(json.dumps({"id": "1", "choices": [{"index": 0, "message": said, "finish_reason": finish}]}))

    def body(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server in a thread of its own."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
