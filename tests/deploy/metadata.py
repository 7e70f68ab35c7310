"""The metadata services of the clouds, as spot machines see them, on a port of this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Metadata(ThreadingHTTPServer):
    """Gives no notice until `take_back` is called."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.end: datetime | None = None
        self.looks = 0  # how often it was asked whether there is a notice
        self.broken = False

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def take_back(self, *, seconds: float) -> None:
        """From now on it tells that the machine ends after so many seconds."""
        self.end = datetime.now(UTC) + timedelta(seconds=seconds)


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        if self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            self._answer(200, "a-token")
        else:
            self._answer(400, "")

    def do_GET(self) -> None:
        match self.path:
            case "/latest/meta-data/spot/instance-action":
                self._tell_aws()
            case "/computeMetadata/v1/instance/preempted" if self.headers.get("Metadata-Flavor") == "Google":
                self.server.looks += 1
                self._answer(200, "TRUE\n" if self.server.end else "FALSE\n")
            case _:
                self._answer(403, "")

    def _tell_aws(self) -> None:
        self.server.looks += 1
        if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
            self._answer(401, "")
        elif self.server.broken:
            self._answer(500, "")
        elif self.server.end is None:
            self._answer(404, "")
        else:
            end = self.server.end.strftime("%Y-%m-%dT%H:%M:%SZ")
            self._answer(200, json.dumps({"action": "terminate", "time": end}))

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def metadata() -> Iterator[Metadata]:
    """Such a service while it is needed."""
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
