"""A chat server on this machine that answers as a test says."""

import contextlib
import dataclasses
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sora_jax.core.chat_server import ChatServer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What is sent: after `event` was set, if there is one."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    event: threading.Event | None = None


def says(content: Any, *, ending: str = "stop", **message: Any) -> Reply:
    """Returns a reply of the usual form."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": ending}
    return Reply(body=json.dumps({"choices": [choice]}).encode())


def fails(status: int, message: str = "no", **headers: str) -> Reply:
    """Returns a reply that is none; `retry_after` is the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body=json.dumps({"error": {"message": message}}).encode(), headers=named)


@dataclasses.dataclass(kw_only=True)
class FakeChat:
    """A server: its address, and of questions, as they came, the bodies, headers and paths."""

    url: str = ""
    asked: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    headers: list[dict[str, str]] = dataclasses.field(default_factory=list)
    paths: list[str] = dataclasses.field(default_factory=list)
    most_at_once: int = 0

    def client(self, model: str | None = "seer", **options: Any) -> ChatServer:
        """Returns a client of the server."""
        return ChatServer(self.url, model, **{"timeout": 10.0, "retries": 3, **options})


@contextlib.contextmanager
def fake_chat(*replies: Reply | Callable[[dict[str, Any]], Reply]) -> Iterator[FakeChat]:
    """Yields a server that gives the replies one after another, the last one to all further questions."""
    fake, lock, at_once = FakeChat(), threading.Lock(), [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(fake.asked)
                fake.asked.append(body)
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                fake.paths.append(self.path)
                at_once[0] += 1
                fake.most_at_once = max(fake.most_at_once, at_once[0])
            chosen = replies[min(number, len(replies) - 1)]
            reply = chosen if isinstance(chosen, Reply) else chosen(body)
            if reply.event is not None:
                reply.event.wait(10.0)
            with lock:
                at_once[0] -= 1
            self._send(reply)

        def do_GET(self) -> None:
            fake.paths.append(self.path)
            self._send(Reply(body=b'{"data": [{"id": "the one"}]}'))

        def _send(self, reply: Reply) -> None:
            with contextlib.suppress(OSError):
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield fake
        for reply in replies:
            if isinstance(reply, Reply) and reply.event is not None:
                reply.event.set()
        server.shutdown()
        thread.join()
