"""Serves a WSGI application (PEP 3333) on the connections of python.py: one thread a request."""

import io
import sys
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from faasd_python import Server


def server(source, app):
    """What serves the application, given a number of threads."""
    return Server(source, lambda connection, body, request_id: serve(app, connection, body, request_id)).run


def serve(app, connection, body, request_id):
    answer = Answer()
    result = app(environment(connection, body, request_id), answer.start)
    try:
        if isinstance(result, (list, tuple)):
            parts = b"".join([*answer.written, *result])
        else:
            # The application may call start_response as late as with its first part.
            iterator = iter(result)
            first = next((part for part in iterator if part), b"")
            parts = chain(answer.written, first, iterator)
        if answer.status is None:
            raise AssertionError("the application did not call start_response")
        length = next((value for name, value in answer.fields if name.lower() == "content-length"), None)
        if isinstance(parts, bytes) and length is not None and int(length) != len(parts) and connection.command != "HEAD":
            raise AssertionError(f"the body has {len(parts)} bytes, and its Content-Length is {length}")
        answer.begun = True
        if answer.status >= 500 and not any(name.lower() == "x-request-id" for name, _ in answer.fields):
            answer.fields.append(("X-Request-Id", request_id))
            print(f"[{request_id}] {connection.command} {connection.path}: {answer.status}", file=sys.stderr, flush=True)
        return connection.answer(answer.status, answer.fields, parts)
    finally:
        if hasattr(result, "close"):
            result.close()


def chain(written, first, rest):
    yield from written
    yield first
    for part in rest:
        yield part
        while written:
            yield written.pop(0)


class Answer:
    """What the application says of its answer."""

    def __init__(self):
        self.status = None
        self.fields = []
        self.written = []
        self.begun = False

    def start(self, status, fields, exc_info=None):
        if exc_info is not None:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status is not None:
            raise AssertionError("start_response was called twice")
        code = status.partition(" ")[0]
        if not (code.isdigit() and 200 <= int(code) <= 599):
            raise AssertionError(f"{status!r} is no status from 200 to 599")
        for name, value in fields:
            if any(c in "\r\n\0" for c in f"{name}{value}"):
                raise ValueError(f"the header {name!r} cannot be set to {value!r}")
        self.status = int(code)
        # How the connection is used is the server's business.
        self.fields = [(name, value) for name, value in fields if name.lower() != "transfer-encoding"]
        return self.written.append


def environment(connection, body, request_id):
    sock = connection.connection
    path, _, query = connection.path.partition("?")
    peer = sock.client or ("", 0)
    try:
        local = sock.getsockname()
    except OSError:
        local = ("", 0)
    host = connection.headers.get("Host", "")
    name, colon, port = host.rpartition(":")
    environ = {
        "REQUEST_METHOD": connection.command,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "REQUEST_URI": connection.path,
        "RAW_URI": connection.path,
        "SERVER_NAME": (name if colon and port.isdigit() else host) or str(local[0]),
        "SERVER_PORT": port if colon and port.isdigit() else str(local[1]),
        "SERVER_PROTOCOL": connection.request_version,
        "SERVER_SOFTWARE": "faasd",
        "REMOTE_ADDR": str(peer[0]),
        "REMOTE_PORT": str(peer[1]),
        "CONTENT_TYPE": connection.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)) if body or "Content-Length" in connection.headers else "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "faas.request_id": request_id,
        "faas.peer": sock.peer,
    }
    if sock.peer is not None:
        environ["REMOTE_USER"] = sock.peer
    for name, value in connection.headers.items():
        key = "HTTP_" + name.upper().replace("-", "_")
        # A name with an underscore could pass for another; HTTP_PROXY is a setting to many a library.
        if "_" in name or key in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_PROXY"):
            continue
        if key in environ:
            value = environ[key] + ("; " if key == "HTTP_COOKIE" else ", ") + value
        environ[key] = value
    return environ
