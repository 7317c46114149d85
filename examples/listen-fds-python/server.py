"""A server that systemd would start on a connection, and faasd does: its listener is descriptor 3."""

import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def caller(address):
    """The name of who has it; the address where the platform knows none, or is none."""
    try:
        return os.readlink(f"/run/faasd-callers/{address}")
    except OSError:
        return address


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"hello from descriptor 3, {caller(self.client_address[0])}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


# sd_listen_fds(3): the descriptors are this process's only if LISTEN_PID says so.
if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
    raise SystemExit("there is no listener: start this by systemd or faasd")
server = ThreadingHTTPServer(("::", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
