# SPDX-License-Identifier: Apache-2.0
"""A page to fetch through the tunnel. It says who asked for it, as the server saw it.

    GET /               one line: hello ADDRESS from NAME
    GET /bytes?n=N      N bytes, the same for everybody (see `body`), to be checked for loss on the way; &rate=R sends
                        them evenly, R bytes a second, so that no queue on the way overflows of its own

Usage: python -m wicketgate.lab.web ADDRESS PORT NAME
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from urllib.parse import parse_qs, urlsplit

BLOCK = 65536  # bytes
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; TCP paces by itself since Linux 4.13
MOST = 1 << 30  # bytes of one answer


def body(count: int) -> Iterator[bytes]:
    """`count` bytes in which no two blocks are alike."""
    number = 0
    while count > 0:
        block = hashlib.shake_128(number.to_bytes(8)).digest(min(BLOCK, count))
        yield block
        count -= len(block)
        number += 1


def digest(count: int) -> str:
    """SHA-256 of `body(count)`."""
    total = hashlib.sha256()
    for block in body(count):
        total.update(block)
    return total.hexdigest()


class Page(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    name = "web"
    timeout = 30  # s; a client that vanished does not keep a thread for ever

    def do_GET(self) -> None:
        """Answer."""
        url = urlsplit(self.path)
        if url.path == "/":
            self._send(200, [f"hello {self.client_address[0]} from {self.name}\n".encode()])
        elif url.path == "/bytes":
            query = parse_qs(url.query)
            text, rate = query.get("n", [""])[0], query.get("rate", ["0"])[0]
            if not text.isdigit() or not rate.isdigit() or max(int(text), int(rate)) > MOST:
                self._send(400, [f"n and rate: numbers up to {MOST}\n".encode()])
            else:
                if int(rate):
                    self.connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, int(rate))
                self._send(200, body(int(text)), int(text))
        else:
            self._send(404, [b"there are / and /bytes?n=N\n"])

    def _send(self, code: int, blocks: Iterator[bytes] | list[bytes], length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(sum(map(len, blocks)) if length is None else length))
        self.end_headers()
        for block in blocks:
            self.wfile.write(block)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(arguments: list[str]) -> int:
    """Serve until killed; exit code 2 when the arguments make no sense."""
    try:
        address, port, Page.name = arguments[0], int(arguments[1]), arguments[2]
    except (IndexError, ValueError):
        print("usage: web ADDRESS PORT NAME", file=sys.stderr)  # noqa: T201
        return 2

    class Server(ThreadingTCPServer):  # HTTPServer would look its own name up first, and wait for a DNS there is not
        allow_reuse_address = True
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

    with contextlib.suppress(KeyboardInterrupt), Server((address, port), Page) as server:
        print(f"listening on {address} port {port}", flush=True)  # noqa: T201
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
