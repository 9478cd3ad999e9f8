"""Something between client and gateway that changes what passes: a planted fault. For the tests of the integration checks."""
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from within.serving.wire import ask

class Between(BaseHTTPRequestHandler):
    "Passes everything on, with a change to what is asked (path, body) or answered (path, (status, answer))."
    protocol_version, url = "HTTP/1.1", ""
    ask_change = answer_change = staticmethod(lambda path, x: x)

    def pass_on(self):
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        try: body = orjson.loads(raw) if raw else None
        except ValueError: body = raw
        status, answer = ask(type(self).url, self.path, type(self).ask_change(self.path, body))
        status, answer = type(self).answer_change(self.path, (status, answer))
        sent = orjson.dumps(answer)
        self.send_response(status)
        for k, v in (("content-type", "application/json"), ("content-length", str(len(sent)))): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = pass_on  # noqa: N815

    def log_message(self, *_): pass


@contextmanager
def planting() -> Iterator[Callable[..., str]]:
    "`start(url, ask_change=…, answer_change=…)` gives the address of something between; all are gone at the end."
    made = []
    def start(url: str, **changes: Any) -> str:
        kind = type("Planted", (Between,), {"url": url, **{k: staticmethod(v) for k, v in changes.items()}})
        made.append(server := ThreadingHTTPServer(("127.0.0.1", 0), kind))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"
    try: yield start
    finally:
        for server in made: server.shutdown(), server.server_close()
