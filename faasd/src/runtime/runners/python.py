"""Runs a Python handler or application: python3 python.py FILE NAME, in the directory of the code.

Connections come by faasd's hand-off protocol (docs/HANDOFF.md) on the descriptors 3 and 4, or, with
FAAS_LISTEN=[::]:8080 in the environment, from a listener of its own. What the handler is given and may return stands
in docs/HANDLERS.md. Standard library only; Python 3.9 or later.

What the name stands for decides who serves it: this file a `handle(event, context)`, faasd_wsgi.py beside it a WSGI
application, and faasd_asgi.py an ASGI application.

A fixed number of threads waits on one epoll. Each descriptor in it is armed for one event, so whoever wakes has the
connection to itself until it is idle again; an idle connection costs a few hundred bytes and no thread.
"""

import gc
import http.client
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, unquote

SOCKET_FD = 3
STATUS_FD = 4
STATUS_BYTES = 4096
PROTOCOL = 1
CONNECTIONS, DRAIN, READY, DRAINED, HELD, GO = 1, 2, 3, 4, 7, 8
HEADER = struct.Struct("<HHHH")  # version, kind, count, bytes of a record
RECORD_BYTES = 32  # of those that say nothing of who dialled
CALLER = struct.Struct("<16sHHH")  # behind that: address, port, where the name begins after the records, its length
CONNECTIONS_MAX = 64
MESSAGE_BYTES_MAX = 8192
# 64-bit words of the status page.
W_RECEIVED, W_FINISHED, W_REQUESTS, W_ERRORS, W_READY = 8, 9, 10, 11, 12

HEAD_BYTES_MAX = 64 << 10
STALL_SECONDS = 30.0  # for a request's head in all, and for any further progress of its body or its answer
LAST_REQUEST_GRACE_SECONDS = 3.0  # while draining, for one more request on a connection that is idle
SEND_BYTES = 256 << 10
EPOLL_ONE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT


def setting(name, default, low, high):
    text = os.environ.get(name, str(default))
    if not text.isdigit() or not low <= int(text) <= high:
        fail(f"{name} is {text!r}; use {low} to {high}")
    return int(text)


def fail(message):
    print(f"faasd: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


class Refused(Exception):
    """A request that is answered with an error of the client's."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class HungUp(Exception):
    """The client is gone, or stands still for too long."""


# --- what the handler sees ---------------------------------------------------------------------------------------


class Headers(Mapping):
    """Header fields by name, upper or lower case. Fields that occur several times are joined by a comma."""

    __slots__ = ("_message",)

    def __init__(self, message):
        self._message = message

    def __getitem__(self, name):
        values = self._message.get_all(name)
        if values is None:
            raise KeyError(name)
        return values[0] if len(values) == 1 else ", ".join(values)

    def __contains__(self, name):
        return name in self._message

    def __iter__(self):
        return iter(dict.fromkeys(name.lower() for name in self._message.keys()))

    def __len__(self):
        return len({name.lower() for name in self._message.keys()})

    def __repr__(self):
        return repr(dict(self))


class Event:
    """One request."""

    __slots__ = ("method", "target", "path", "headers", "body", "_query")

    def __init__(self, method, target, headers, body):
        self.method = method
        self.target = target
        self.path = unquote(target.partition("?")[0])
        self.headers = Headers(headers)
        self.body = body
        self._query = None

    @property
    def query(self):
        """The query's parameters. Of several with one name the last counts; `target` has them all."""
        if self._query is None:
            self._query = dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))
        return self._query

    def text(self):
        return self.body.decode("utf-8")

    def json(self):
        """The body, read as JSON. What is none is answered with 400, unless the handler catches the ValueError."""
        try:
            return json.loads(self.body)
        except ValueError as e:
            raise BadJson(f"the body is no JSON: {e}") from None


class BadJson(ValueError):
    pass


class Context:
    """What the platform knows about a request."""

    __slots__ = ("function", "revision", "request_id", "peer", "_socket")

    def __init__(self, request_id, sock):
        self.function = FUNCTION_NAME
        self.revision = REVISION
        self.request_id = request_id
        self.peer = sock.peer  # the name of who called; None if the platform does not know, or is none
        self._socket = sock

    @property
    def client(self):
        """The caller's address and port."""
        return self._socket.client

    def log(self, *parts):
        print(f"[{self.request_id}]", *parts, file=sys.stderr, flush=True)


FUNCTION_NAME = os.environ.get("FAAS_FUNCTION", "")
REVISION = os.environ.get("FAAS_REVISION", "")
_run_id = os.urandom(4).hex()
_request_ids = itertools.count(1)


# --- the socket's two directions -----------------------------------------------------------------------------------


class Accepted(socket.socket):
    """A connection, and who is at its other end."""

    __slots__ = ("peer", "_client")

    def __init__(self, fd, family, client, peer=None):
        # Nothing is asked for that is known, to save three system calls.
        super().__init__(family, socket.SOCK_STREAM, 0, fileno=fd)
        self.peer = peer
        self._client = client

    @property
    def client(self):
        """Address and port; None once nobody can tell."""
        if self._client is None:
            try:
                self._client = self.getpeername()[:2]
            except OSError:
                return None
        elif isinstance(self._client[0], bytes):
            address, port = self._client
            mapped = address[:12] == b"\0" * 10 + b"\xff\xff"
            address = socket.inet_ntop(socket.AF_INET, address[12:]) if mapped else socket.inet_ntop(socket.AF_INET6, address)
            self._client = address, port
        return self._client


class Input(io.RawIOBase):
    """Reads a non-blocking socket for a buffered reader, with a deadline, and for a head with a limit."""

    def __init__(self, sock):
        self.sock = sock
        self.deadline = 0.0
        self.left = HEAD_BYTES_MAX
        self.in_head = True
        self.probing = False

    def readable(self):
        return True

    def head(self):
        self.in_head = True
        self.left = HEAD_BYTES_MAX
        self.deadline = time.monotonic() + STALL_SECONDS

    def readinto(self, buffer):
        if self.probing:
            return None
        while True:
            try:
                got = self.sock.recv_into(buffer)
                break
            except BlockingIOError:
                if not self.in_head:
                    self.deadline = time.monotonic() + STALL_SECONDS
                wait(self.sock, select.POLLIN, self.deadline)
            except OSError as e:
                raise HungUp from e
        if self.in_head:
            if self.left <= 0:
                raise Refused(431, "the request's head is too long")
            self.left -= got
        return got


class Output:
    """Collects what is written, and sends it in one piece."""

    def __init__(self, sock):
        self.sock = sock
        self.parts = []

    def write(self, data):
        self.parts.append(data)
        return len(data)

    def flush(self):
        parts, self.parts = self.parts, []
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        sent = 0
        while sent < len(data):
            try:
                # Sliced without copying only where it matters.
                piece = data if not sent and len(data) <= SEND_BYTES else memoryview(data)[sent : sent + SEND_BYTES]
                sent += self.sock.send(piece)
            except BlockingIOError:
                wait(self.sock, select.POLLOUT, time.monotonic() + STALL_SECONDS)
            except OSError as e:
                raise HungUp from e


def wait(sock, what, deadline):
    poll = select.poll()
    poll.register(sock, what)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise HungUp


# --- one connection --------------------------------------------------------------------------------------------------


class Connection(BaseHTTPRequestHandler):
    """A connection, and the standard library's reading and writing of HTTP upon it."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"
    _date = (0, "")

    def __init__(self, server, sock):  # deliberately not the base's, which would serve the connection at once
        self.server = server
        self.connection = sock
        self.served = 0
        self.armed = False
        self.rfile = self.wfile = self.input = None
        self.close_connection = False

    def serve(self):
        """Answers what has come. True if the connection is idle now and is to be kept."""
        sock = self.connection
        self.input = Input(sock)
        self.rfile = io.BufferedReader(self.input, 16 << 10)
        self.wfile = Output(sock)
        try:
            if not self.served:
                # Mostly the first request is there. If it is not, no thread waits for it.
                if not self.has_input():
                    return True
            while True:
                self.input.head()
                self.one_request()
                if self.close_connection:
                    self.finish_writing()
                    return False
                self.input.probing = True
                pipelined = self.rfile.peek(1)
                self.input.probing = False
                if not pipelined:
                    return True
        except HungUp:
            return False
        finally:
            # Nothing of a request outlives it: idle connections are many.
            self.rfile = self.wfile = self.input = self.headers = None
            self.raw_requestline = self.requestline = None

    def has_input(self):
        try:
            self.connection.recv(1, socket.MSG_PEEK)
            return True
        except BlockingIOError:
            return False
        except OSError as e:
            raise HungUp from e

    def one_request(self):
        self.request_version = self.default_request_version
        self.command = ""
        self.requestline = ""
        self.close_connection = True
        try:
            self.raw_requestline = self.rfile.readline(HEAD_BYTES_MAX + 1)
            if self.raw_requestline in (b"\r\n", b"\n"):
                # RFC 9112, 2.2: an empty line before a request is to be ignored.
                self.raw_requestline = self.rfile.readline(HEAD_BYTES_MAX + 1)
            if not self.raw_requestline:
                return
            self.served += 1
            if not self.raw_requestline.endswith(b"\n"):
                raise Refused(414 if len(self.raw_requestline) > HEAD_BYTES_MAX else 400, "the request breaks off")
            if not self.parse_request():
                return
            if self.headers.defects:
                raise Refused(400, "a header field is malformed")
            body = self.read_body()
        except Refused as e:
            self.send_error(e.status, str(e))
            return
        self.call(body)

    def handle_expect_100(self):
        return True  # said by `read_body`, if the body is welcome

    def read_body(self):
        coding = self.headers.get("Transfer-Encoding")
        lengths = self.headers.get_all("Content-Length")
        if coding is None and lengths is None:
            return b""
        if coding is not None:
            if lengths is not None or self.request_version < "HTTP/1.1":
                raise Refused(400, "a body has a Content-Length or, in HTTP/1.1, a Transfer-Encoding")
            if coding.strip().lower() != "chunked":
                raise Refused(501, "the only transfer coding is chunked")
            length = None
        else:
            length = lengths[0].strip()
            if any(other.strip() != length for other in lengths) or not (length.isascii() and length.isdigit()):
                raise Refused(400, "the Content-Length is no number")
            length = int(length) if len(length) < 19 else BODY_BYTES_MAX + 1
            if length > BODY_BYTES_MAX:
                raise Refused(413, f"a body may have {BODY_BYTES_MAX} bytes")
        if self.headers.get("Expect", "").lower() == "100-continue" and length != 0:
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
        self.input.in_head = False
        return self.read_exactly(length) if length is not None else self.read_chunked()

    def read_exactly(self, length):
        data = self.rfile.read(length)
        if data is None or len(data) != length:
            raise HungUp
        return data

    def read_chunked(self):
        body = bytearray()
        while True:
            line = self.rfile.readline(1024)
            size = line.partition(b";")[0].strip()
            if not line.endswith(b"\n"):
                raise HungUp if not line else Refused(400, "a chunk's size is too long")
            if not 0 < len(size) <= 8 or size.strip(b"0123456789abcdefABCDEF"):
                raise Refused(400, "a chunk's size is no number")
            size = int(size, 16)
            if size == 0:
                break
            if len(body) + size > BODY_BYTES_MAX:
                raise Refused(413, f"a body may have {BODY_BYTES_MAX} bytes")
            body += self.read_exactly(size)
            if self.read_exactly(2) != b"\r\n":
                raise Refused(400, "a chunk is longer than it says")
        for _ in range(100):
            line = self.rfile.readline(1024)
            if line in (b"\r\n", b"\n"):
                return bytes(body)
            if not line.endswith(b"\n"):
                break
        raise Refused(400, "the trailer is malformed")

    def call(self, body):
        request_id = f"{_run_id}-{next(_request_ids)}"
        status = 500
        try:
            status = self.server.interface(self, body, request_id)
        except HungUp:
            raise
        except BadJson as e:
            status = 400
            self.answer(400, [], f"{e}\n".encode())
        except Exception:
            self.server.count(W_REQUESTS, W_ERRORS)
            print(f"[{request_id}] {self.command} {self.path} failed", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            if self.wfile.parts is None:  # within a stream: the client must see that it is cut short
                raise HungUp from None
            self.wfile.parts.clear()
            self._headers_buffer = []
            message = f"internal server error, request {request_id}\n".encode()
            self.answer(500, [("X-Request-Id", request_id)], message)
            return
        self.server.count(W_REQUESTS, *((W_ERRORS,) if status >= 500 else ()))

    def answer(self, status, fields, body):
        """Writes an answer. `body` is bytes, or an iterator of bytes."""
        self.send_response_only(status)
        bodiless = status < 200 or status in (204, 304)
        streamed = not isinstance(body, bytes)
        names, length = set(), None
        for name, value in fields:
            names.add(name.lower())
            if name.lower() == "content-length":
                length = int(value)
            self.send_header(name, value)  # `Connection: close` among them is heeded by the base
        if "date" not in names:
            self.send_header("Date", self.date_time_string())
        if "content-type" not in names and not bodiless:
            self.send_header("Content-Type", "text/plain; charset=utf-8")
        chunked = streamed and self.request_version >= "HTTP/1.1" and length is None
        if chunked and not bodiless:
            self.send_header("Transfer-Encoding", "chunked")
        elif streamed and length is None:
            self.close_connection = True
        elif not bodiless and length is None:
            self.send_header("Content-Length", str(len(body)))
        # Once it is said it is done, and what is not said is not done: the client goes by it.
        self.close_connection = self.close_connection or self.server.draining
        if self.close_connection:
            self.send_header("Connection", "close")
        elif self.request_version < "HTTP/1.1":
            self.send_header("Connection", "keep-alive")
        self.end_headers()
        if self.command == "HEAD" or bodiless:
            if streamed and hasattr(body, "close"):
                body.close()
        elif not streamed:
            self.wfile.write(body)
        else:
            self.stream(body, chunked, length)
        self.wfile.flush()
        return status

    def stream(self, body, chunked, length=None):
        """Sends each part at once. `length` is what the header has promised, if it has."""
        self.wfile.flush()
        sent = 0
        try:
            for part in body:
                part = part.encode() if isinstance(part, str) else bytes(part)
                sent += len(part)
                if length is not None and sent > length:
                    raise ValueError(f"the body is longer than its Content-Length, {length}")
                if part:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
                    self.wfile.flush()
            if length is not None and sent != length:
                raise ValueError(f"the body is shorter than its Content-Length, {length}: {sent}")
        except HungUp:
            raise
        except Exception:
            self.wfile.parts = None
            raise
        finally:
            if hasattr(body, "close"):
                body.close()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def send_error(self, code, message=None, explain=None):
        """Answers a request that the handler never sees. What follows it cannot be understood, so it is the last."""
        self.close_connection = True
        self._headers_buffer = []
        self.answer(int(code), [], f"{message or 'bad request'}\n".encode())

    def date_time_string(self, timestamp=None):
        now = int(time.time())
        if Connection._date[0] != now:
            Connection._date = (now, super().date_time_string(now))
        return Connection._date[1]

    def finish_writing(self):
        """Closes so that the client reads the answer even if it is still sending: a close with unread input is a
        reset, which may overtake what was sent."""
        try:
            self.connection.shutdown(socket.SHUT_WR)
            if self.close_connection and self.input.in_head and not self.has_input():
                return
            deadline = time.monotonic() + 1.0
            for _ in range(256):
                try:
                    if not self.connection.recv(64 << 10):
                        return
                except BlockingIOError:
                    wait(self.connection, select.POLLIN, deadline)
        except OSError:
            pass


def understand(result):
    """What a handler returned, as status, header fields and body."""
    status, fields = 200, []
    if isinstance(result, tuple):
        if len(result) == 2:
            status, result = result
        elif len(result) == 3:
            status, fields, result = result
            fields = list(fields.items()) if isinstance(fields, Mapping) else list(fields)
        else:
            raise TypeError("a handler's tuple is (status, body) or (status, headers, body)")
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise TypeError(f"a handler's status is 200 to 599, not {status!r}")
        for name, value in fields:
            if any(c in "\r\n\0" for c in f"{name}{value}") or name.lower() in ("content-length", "transfer-encoding"):
                raise ValueError(f"the header {name!r} cannot be set to {value!r}")
    elif result is None:
        status = 204
    if result is None:
        return status, fields, b""
    kind = "text/plain; charset=utf-8"
    if isinstance(result, str):
        body = result.encode()
    elif isinstance(result, (bytes, bytearray, memoryview)):
        body, kind = bytes(result), "application/octet-stream"
    elif isinstance(result, (dict, list, int, float)):
        body, kind = json.dumps(result).encode() + b"\n", "application/json"
    elif hasattr(result, "__iter__"):
        body, kind = iter(result), "application/octet-stream"
    else:
        raise TypeError(f"a handler cannot return a {type(result).__name__}; see docs/HANDLERS.md")
    if not any(name.lower() == "content-type" for name, _ in fields):
        fields.append(("Content-Type", kind))
    return status, fields, body


# --- the server ----------------------------------------------------------------------------------------------------


class Platform:
    """Connections from faasd."""

    def __init__(self):
        try:
            self.sock = socket.socket(fileno=SOCKET_FD)
            if self.sock.type != socket.SOCK_SEQPACKET:
                raise OSError("it is no SOCK_SEQPACKET socket")
            page = mmap.mmap(STATUS_FD, STATUS_BYTES)
        except (OSError, ValueError) as e:
            fail(f"descriptor 3 or 4 is not faasd's: {e}; set FAAS_LISTEN=[::]:8080 to run without it")
        self.sock.set_inheritable(False)
        os.close(STATUS_FD)
        self.words = memoryview(page).cast("Q")

    def say(self, kind):
        try:
            self.sock.send(HEADER.pack(PROTOCOL, kind, 0, RECORD_BYTES), socket.MSG_NOSIGNAL)
        except OSError as e:
            fail(f"faasd is gone: {e}")

    def hold(self):
        """Waits for the word to load the function's code, of which nothing has been looked at before."""
        self.say(HELD)
        try:
            data = self.sock.recv(MESSAGE_BYTES_MAX)
        except OSError as e:
            fail(f"faasd is gone: {e}")
        if not data:
            sys.exit(0)  # it was not needed
        version, kind, _, _ = HEADER.unpack_from(data) if len(data) >= HEADER.size else (0, 0, 0, 0)
        if (version, kind) != (PROTOCOL, GO):
            fail(f"a message of {len(data)} bytes came before the word to go")

    def ready(self):
        self.words[W_READY] = 1
        self.say(READY)

    def drained(self):
        self.say(DRAINED)

    def take(self, server):
        """One message's connections; None when there are to be no more."""
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(
                MESSAGE_BYTES_MAX,
                socket.CMSG_SPACE(CONNECTIONS_MAX * 4),
                socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            return []
        except OSError as e:
            print(f"faasd: receiving: {e}", file=sys.stderr, flush=True)
            return None
        fds = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds += memoryview(content)[: len(content) // 4 * 4].cast("i").tolist()
        if not data and not fds:
            return None
        version, kind, count, record_bytes = HEADER.unpack_from(data) if len(data) >= 8 else (0, 0, 0, 0)
        lost = count - len(fds)
        truncated = bool(flags & socket.MSG_CTRUNC)
        whole = len(data) >= HEADER.size + count * record_bytes and not flags & socket.MSG_TRUNC
        if version != PROTOCOL or not whole or lost < 0 or (lost and not truncated) or kind not in (CONNECTIONS, DRAIN):
            for fd in fds:
                os.close(fd)
            print(f"faasd: a message of {len(data)} bytes is malformed", file=sys.stderr, flush=True)
            server.exit_code = 1
            return None
        if kind == DRAIN:
            return None
        server.received(count)
        if lost:
            for _ in range(lost):
                server.count(W_ERRORS)
            server.finished(lost)
            print(f"faasd: {lost} connections were lost: this process is at its limit of open files; "
                  "raise limits.files", file=sys.stderr, flush=True)
        names = HEADER.size + count * record_bytes
        return [
            Accepted(fd, socket.AF_INET6, *caller(data, HEADER.size + n * record_bytes, record_bytes, names))
            for n, fd in enumerate(fds)
        ]


def caller(data, at, record_bytes, names):
    """The address that a connection was dialled from, and the name of who has it, as far as its record says so."""
    if record_bytes < RECORD_BYTES + CALLER.size:
        return None, None
    address, port, begin, length = CALLER.unpack_from(data, at + RECORD_BYTES)
    name = data[names + begin : names + begin + length].decode("utf-8", "replace") if length else None
    return ((address, port) if port else None), name


class Listener:
    """Connections from a listener of our own: for a run without faasd."""

    def __init__(self, address):
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            fail(f"FAAS_LISTEN is {address!r}; write an address and a port, like [::]:8080")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.sock = socket.socket(family, socket.SOCK_STREAM)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind((host, int(port)))
            self.sock.listen(4096)
        except (OSError, OverflowError) as e:
            fail(f"listening on {address}: {e}")
        self.sock.setblocking(False)
        self.words = memoryview(mmap.mmap(-1, STATUS_BYTES)).cast("Q")

    def hold(self):
        pass

    def ready(self):
        host, port = self.sock.getsockname()[:2]
        print(f"listening on {f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)

    def drained(self):
        pass

    def take(self, server):
        try:
            sock, address = self.sock.accept()
        except BlockingIOError:
            return []
        except OSError as e:
            print(f"faasd: accepting: {e}", file=sys.stderr, flush=True)
            time.sleep(0.02)  # out of descriptors, most likely
            return []
        server.received(1)
        return [Accepted(sock.detach(), self.sock.family, address[:2])]


def handle_interface(handle):
    """Serves a `handle(event, context)`."""

    def serve(connection, body, request_id):
        event = Event(connection.command, connection.path, connection.headers, body)
        return connection.answer(*understand(handle(event, Context(request_id, connection.connection))))

    return serve


class Server:
    def __init__(self, source, interface):
        self.source = source
        # Called with a connection, the request's body and its id; answers, and returns the status.
        self.interface = interface
        self.words = source.words
        self.lock = threading.Lock()
        self.epoll = select.epoll()
        # By descriptor. Whoever takes a connection out has it to itself: a worker that was woken, or the drain.
        self.idle = {}
        self.draining = False
        self.exit_code = 0
        self.at_end = None  # called when all is answered
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)

    # Python has no atomic addition, so the counters have a lock; the store itself is one of 8 aligned bytes.
    def count(self, *words):
        with self.lock:
            for word in words:
                self.words[word] += 1

    def received(self, count):
        with self.lock:
            self.words[W_RECEIVED] += count

    def finished(self, count):
        with self.lock:
            self.words[W_FINISHED] += count
        if self.draining:
            self.wake()

    def open(self):
        with self.lock:
            return self.words[W_RECEIVED] - self.words[W_FINISHED]

    def wake(self, *_):
        try:
            os.write(self.wake_write, b"x")
        except BlockingIOError:
            pass

    def run(self, threads):
        signal.signal(signal.SIGTERM, self.wake)
        signal.signal(signal.SIGINT, self.wake)
        self.epoll.register(self.source.sock, EPOLL_ONE)
        for _ in range(threads):
            threading.Thread(target=self.work, daemon=True).start()
        self.source.ready()
        os.read(self.wake_read, 1)
        self.drain()
        if self.at_end is not None:
            self.at_end()
        self.source.drained()
        return self.exit_code

    def work(self):
        source, control, idle = self.source, self.source.sock.fileno(), self.idle
        poll = self.epoll.poll
        while True:
            for fd, _ in poll(-1, 1):
                if fd == control:
                    self.take(source)
                    continue
                connection = idle.pop(fd, None)
                if connection is not None:
                    self.serve(connection)

    def take(self, source):
        if self.draining:
            return  # what is queued goes to another instance
        sockets = source.take(self)
        if sockets is None:
            self.wake()
            return
        connections = []
        for sock in sockets:
            sock.setblocking(False)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                pass  # reset already, which reading will tell
            connections.append(Connection(self, sock))
        # All but one go to whoever is free; that one is answered here and now.
        for connection in connections[1:]:
            self.park(connection)
        self.epoll.modify(source.sock, EPOLL_ONE)
        if connections:
            self.serve(connections[0])

    def serve(self, connection):
        keep = False
        try:
            keep = connection.serve()
        except BaseException:  # a thread that dies would be missing for ever
            traceback.print_exc()
            sys.stderr.flush()
        if keep:
            self.park(connection)
        else:
            self.close(connection)

    def park(self, connection):
        sock = connection.connection
        fd = sock.fileno()
        self.idle[fd] = connection
        # Whether it was armed before must be known before arming: from then on the connection is somebody else's.
        armed, connection.armed = connection.armed, True
        (self.epoll.modify if armed else self.epoll.register)(fd, EPOLL_ONE)
        if self.draining:
            self.wake()

    def close(self, connection):
        connection.connection.close()
        self.finished(1)

    def drain(self):
        self.draining = True
        begun = time.monotonic()
        while self.open():
            # A client cannot know yet, and may be about to ask. The answer will tell it to ask elsewhere from then on.
            grace = begun + LAST_REQUEST_GRACE_SECONDS - time.monotonic()
            for fd in list(self.idle) if grace <= 0 else ():
                connection = self.idle.pop(fd, None)
                if connection is None:
                    continue
                try:
                    busy = connection.has_input()
                except HungUp:
                    busy = False
                if busy:
                    # A worker has it, or will have: its event may have been spent on the moment that it was ours.
                    self.idle[fd] = connection
                    self.epoll.modify(fd, EPOLL_ONE)
                else:
                    self.close(connection)
            if self.open():
                select.select([self.wake_read], [], [], max(0.05, grace) if grace > 0 else 0.5)
                if select.select([self.wake_read], [], [], 0)[0]:
                    os.read(self.wake_read, 4096)


def load(file, function):
    directory = os.getcwd()
    sys.path[0] = directory
    dependencies = os.environ.get("FAAS_DEPENDENCIES")
    if dependencies:
        sys.path.append(dependencies)
    path = os.path.join(directory, file)
    if not os.path.isfile(path):
        fail(f"there is no {file} among: {', '.join(sorted(os.listdir(directory))) or 'no files at all'}")
    name = (file[:-3] if file.endswith(".py") else file).replace("/", ".")
    try:
        if "." in name:
            module = importlib.import_module(name)
        else:  # by its path: a file may be called like a module of the standard library
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
    except ImportError as e:
        traceback.print_exc()
        missing = (getattr(e, "name", None) or "").partition(".")[0]
        hint = f"; is {missing} in requirements.txt?" if missing and not dependencies else ""
        fail(f"{file} cannot be imported{hint}")
    except Exception:
        traceback.print_exc()
        fail(f"{file} cannot be imported")
    handler = getattr(module, function, None)
    if not callable(handler):
        found = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == name]
        fail(f"{file} has no function {function}; it has: {', '.join(found) or 'none'}")
    return handler


def interface_of(app, name):
    """What kind of callable it is: by FAAS_INTERFACE, or by its parameters."""
    named = os.environ.get("FAAS_INTERFACE")
    if named:
        if named not in ("handle", "wsgi", "asgi"):
            fail(f"FAAS_INTERFACE is {named!r}; use handle, wsgi or asgi")
        return named
    is_async = inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None))
    try:
        parameters = [
            p.name
            for p in inspect.signature(app).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
    except (TypeError, ValueError):
        return "handle"
    if len(parameters) == 3 and (is_async or parameters[0] == "scope"):
        return "asgi"
    if is_async:
        fail(f"{name} is an async function of {len(parameters)} parameters: write a plain one, since each request has a "
             "thread, or an ASGI application (scope, receive, send)")
    is_plain = inspect.isfunction(app) or inspect.isbuiltin(app)
    if len(parameters) == 2 and (not is_plain or parameters[1] == "start_response" or parameters[0] == "environ"):
        return "wsgi"
    return "handle"


def main():
    if len(sys.argv) != 3:
        fail("usage: python3 python.py FILE FUNCTION")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    threads = setting("FAAS_THREADS", min(32, (os.cpu_count() or 1) + 4), 1, 256)
    address = os.environ.get("FAAS_LISTEN")
    source = Listener(address) if address else Platform()
    beside = os.path.dirname(os.path.abspath(__file__))
    # What is loaded now stays: the collector need not look at it again, and forks can share it.
    gc.collect()
    gc.freeze()
    if os.environ.pop("FAAS_HOLD", "") == "1":
        source.hold()
    app = load(sys.argv[1], sys.argv[2])
    kind = interface_of(app, sys.argv[2])
    if kind == "handle":
        serve = Server(source, handle_interface(app)).run
    else:
        module = importlib.util.spec_from_file_location(f"faasd_{kind}", os.path.join(beside, f"faasd_{kind}.py"))
        runner = importlib.util.module_from_spec(module)
        sys.modules[module.name] = runner
        # This file by its own name, whatever it was started as.
        sys.modules["faasd_python"] = sys.modules["__main__"]
        module.loader.exec_module(runner)
        serve = runner.server(source, app)
    gc.collect()
    gc.freeze()
    sys.exit(serve(threads))


BODY_BYTES_MAX = setting("FAAS_BODY_BYTES_MAX", 16 << 20, 0, 1 << 30)

if __name__ == "__main__":
    main()
