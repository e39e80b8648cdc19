"""Requests to the worker: JSON over HTTP, on this computer, with a token.

::

    GET  /health             {"version", "pid", "cpu_s", "queued", "running"}
    POST /jobs               {"folder": ...} -> 202 {"id", "state", ...}
    GET  /jobs/ID?offset=N   {"id", "state", "ahead", "progress", "log", "offset", "answer"}
    POST /jobs/ID/cancel     the same
    POST /shutdown           {"state": "ends"}

A request that is refused is told why in ``{"message": ...}``. Web pages cannot get in: requests that name an origin, or
a host that is not this computer, are refused whatever they hold.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import qupath_ext
from qupath_ext.serve.folders import AllowedFolders
from qupath_ext.serve.jobs import JobQueue
from qupath_ext.serve.refused import Refused

__all__ = ["MAX_BODY_BYTES", "WorkerServer"]

LOOPBACK = "127.0.0.1"
MAX_BODY_BYTES = 1 << 20
MAX_CONNECTIONS = 32
TIMEOUT_S = 10.0
"""How long a caller may be silent in the middle of a request."""

JOB = re.compile(r"/jobs/([0-9a-f]{32})(/cancel)?")


class WorkerServer(ThreadingHTTPServer):
    """Takes requests on a free port of the loopback interface.

    Parameters
    ----------
    token
        What every request has to show.
    queue
        Where jobs go.
    allowed
        Says which jobs.
    """

    allow_reuse_address = False  # on Windows, others could listen on the same port
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, token: str, queue: JobQueue, allowed: AllowedFolders) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.token = token
        self.queue = queue
        self.allowed = allowed
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.server_port}"

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Answer in a thread, unless too many do so already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Answer a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Pass over callers that went away; the worker goes on after all else, too."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; the connection is closed afterwards."""

    server: WorkerServer
    timeout = TIMEOUT_S
    last = False
    """After this request the worker ends."""

    def do_GET(self) -> None:
        self._respond()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def _respond(self) -> None:
        try:
            self._check_caller()
            status, content = self._granted()
        except Refused as refused:
            status, content = refused.status, {"message": str(refused)}
        try:
            self._send(status, content)
        finally:
            if self.last:  # the process ends with the queue, and would take an answer along that was not sent yet
                self.server.queue.close()

    def _check_caller(self) -> None:
        """Let nobody in but programs of this computer that know the token."""
        hosts = self.headers.get_all("Host") or []
        port = self.server.server_port
        if len(hosts) != 1 or hosts[0].strip().lower() not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            raise Refused(403, "a request to another host", expected=self.server.url)
        if "Origin" in self.headers:
            raise Refused(403, "a request from a web page", expected="one from a script of qupath-ext")
        shown = self.headers.get_all("Authorization") or [""]
        expected = f"Bearer {self.server.token}"
        if len(shown) != 1 or not hmac.compare_digest(shown[0].encode(), expected.encode()):
            raise Refused(401, "no token, or a wrong one", expected="the one in the file of the worker")

    def _granted(self) -> tuple[int, dict[str, Any]]:
        """Do what is asked for, and return status and content of the response."""
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            raise Refused(400, f"address {self.path!r:.80}") from error
        job = JOB.fullmatch(url.path)
        queue = self.server.queue
        match self.command, url.path:
            case "GET", "/health":
                return 200, _health(queue)
            case "POST", "/jobs":
                ticket = queue.submit(self.server.allowed.admit(self._body().get("folder")))
                return 202, queue.describe(ticket.id)
            case "POST", "/shutdown":
                self._body()
                self.last = True
                return 202, {"state": "ends"}
            case "GET", _ if job and not job[2]:
                return 200, queue.describe(job[1], _offset(url.query))
            case "POST", _ if job and job[2]:
                self._body()
                queue.cancel(job[1])
                return 200, queue.describe(job[1])
        if url.path in ("/health", "/jobs", "/shutdown") or job:
            raise Refused(405, f"{self.command} {url.path:.80}", expected="the other method")
        raise Refused(404, f"nothing at {url.path:.80}")

    def _body(self) -> dict[str, Any]:
        """Return the JSON object that was sent; nothing is the empty one."""
        if "Transfer-Encoding" in self.headers:
            raise Refused(411, "a body of unknown length", expected="Content-Length")
        lengths = self.headers.get_all("Content-Length") or ["0"]
        if len(lengths) != 1 or not re.fullmatch(r"[0-9]+", lengths[0].strip()):
            raise Refused(400, f"Content-Length {', '.join(lengths)!r:.80}", expected="one number")
        if len(lengths[0].strip()) > 9 or int(lengths[0]) > MAX_BODY_BYTES:
            raise Refused(413, "a body that is too long", expected=f"at most {MAX_BODY_BYTES} bytes")
        try:
            body = self.rfile.read(int(lengths[0]))
        except TimeoutError as error:
            raise Refused(408, "less was sent than Content-Length says") from error
        if len(body) < int(lengths[0]):
            raise Refused(400, f"{len(body)} bytes", expected=f"{lengths[0]}, as Content-Length says")
        try:
            content = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"no JSON ({error})") from error
        if not isinstance(content, dict):
            raise Refused(400, "JSON of another kind", expected="an object")
        return content

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no proper request."""
        del explain
        self.request_version = "HTTP/1.0"  # for one that is not known, no head would be written
        self._send(code, {"message": message or "this request is not understood"})

    def version_string(self) -> str:
        """Name the program, not what it is made of."""
        return "qupath-ext"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the log for the jobs."""


def _health(queue: JobQueue) -> dict[str, Any]:
    return {
        "version": qupath_ext.__version__,
        "pid": os.getpid(),
        "cpu_s": time.process_time(),
        **queue.counts(),
    }


def _offset(query: str) -> int:
    """Return the number of the first line that is wanted."""
    given = parse_qs(query).get("offset", ["0"])[-1]
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise Refused(400, f"offset {given!r:.80}", expected="a number of lines")
    return int(given)
