"""Serves an ASGI application on the connections of python.py.

If the function brings uvicorn, its protocols serve the connections, WebSockets included, on one event loop: nothing is
different for the application but where connections come from. Otherwise each request has a thread of python.py's, and
the application an event loop in a thread of its own; that is HTTP alone, and plain.
"""

import asyncio
import importlib.util
import itertools
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from email.utils import formatdate
from urllib.parse import unquote

from faasd_python import W_ERRORS, W_FINISHED, W_RECEIVED, W_REQUESTS, LAST_REQUEST_GRACE_SECONDS, HungUp, Server, fail

VERSIONS = {"version": "3.0", "spec_version": "2.4"}
LIFESPAN_SECONDS = 60.0
PEER = "faas.peer"  # the extension that tells who called
PEER_CHECK_SECONDS = 1.0  # how often a client that is sent nothing is looked after
_run_id = os.urandom(4).hex()
_request_ids = itertools.count(1)


def server(source, app):
    """What serves the application, given a number of threads."""
    if importlib.util.find_spec("uvicorn") is not None:
        return lambda threads: Uvicorn(source, app).run()
    return Threaded(source, app).run


# --- by uvicorn ------------------------------------------------------------------------------------------------------


class Connections(set):
    """uvicorn's set of open connections, which tells of those that go."""

    def __init__(self, changed):
        super().__init__()
        self.changed = changed

    def discard(self, connection):
        super().discard(connection)
        self.changed()


class Uvicorn:
    def __init__(self, source, app):
        import uvicorn
        from uvicorn.server import ServerState

        self.source = source
        self.words = source.words
        self.exit_code = 0
        self.config = uvicorn.Config(
            self.counted(app),
            access_log=False,
            log_level="warning",
            interface="asgi3",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=365 * 86400,  # nothing is closed for being idle
        )
        self.config.load()
        # What was cut short is in the log already, under its id.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not record.exc_info or record.exc_info[0] is not Logged)
        self.state = ServerState()
        self.state.connections = Connections(self.changed)
        self.lifespan = self.config.lifespan_class(self.config)
        self.ticking = False
        self.starting = 0

    def run(self):
        if hasattr(self.config, "get_loop_factory"):
            loop = (self.config.get_loop_factory() or asyncio.new_event_loop)()
        else:
            self.config.setup_event_loop()
            loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self.loop = loop
        loop.run_until_complete(self.main())
        return self.exit_code

    async def main(self):
        self.draining = asyncio.Event()
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            fail("the application's startup failed")
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.draining.set)
        self.source.sock.setblocking(False)
        self.loop.add_reader(self.source.sock, self.take)
        self.source.ready()
        await self.draining.wait()
        self.loop.remove_reader(self.source.sock)
        begun = time.monotonic()
        # A client cannot know yet, and may be about to ask. The answer tells it to ask elsewhere from then on.
        self.state.default_headers.append((b"connection", b"close"))
        while self.state.connections or self.starting or self.state.tasks:
            for connection in list(self.state.connections):
                cycle = getattr(connection, "cycle", None)
                idle = hasattr(connection, "cycle") and (cycle is None or cycle.response_complete)
                if not idle or time.monotonic() - begun > LAST_REQUEST_GRACE_SECONDS:
                    connection.shutdown()
            await asyncio.sleep(0.02)
        await self.lifespan.shutdown()
        self.source.drained()

    # What the source calls.

    def count(self, *words):
        for word in words:
            self.words[word] += 1

    def received(self, count):
        self.words[W_RECEIVED] += count

    def finished(self, count):
        self.words[W_FINISHED] += count

    def take(self):
        sockets = self.source.take(self)
        if sockets is None:
            self.loop.remove_reader(self.source.sock)
            self.draining.set()
            return
        for sock in sockets:
            self.starting += 1
            task = self.loop.create_task(self.connect(sock))
            task.add_done_callback(self.connected)

    async def connect(self, sock):
        sock.setblocking(False)
        if not self.ticking:
            self.tick()
        try:
            # asyncio sets TCP_NODELAY.
            await self.loop.connect_accepted_socket(lambda: self.protocol(sock.peer), sock)
        except OSError:
            sock.close()

    def connected(self, task):
        self.starting -= 1
        self.changed()
        if task.exception() is not None:
            traceback.print_exception(task.exception())

    def protocol(self, peer):
        # The state that uvicorn copies into each of the connection's scopes is the way for what it does not know.
        state = {**self.lifespan.state, PEER: peer}
        return self.config.http_protocol_class(
            config=self.config, server_state=self.state, app_state=state, _loop=self.loop
        )

    def changed(self):
        # Later: for an upgrade one protocol takes the connection over from another.
        self.loop.call_soon(self.recount)

    def recount(self):
        open_now = len(self.state.connections) + self.starting
        self.words[W_FINISHED] = max(self.words[W_FINISHED], self.words[W_RECEIVED] - open_now)

    def tick(self):
        """Keeps the Date of answers right, as long as there is anybody to be answered."""
        self.ticking = bool(self.state.connections or self.starting)
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode()), *self.config.encoded_headers]
        if self.ticking:
            self.loop.call_later(1.0, self.tick)

    def counted(self, app):
        """The application, with its answers counted and its failures logged under an id."""

        async def serve(scope, receive, send):
            if PEER in scope.get("state", ()):
                tell(scope, scope["state"].pop(PEER))
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            request_id = f"{_run_id}-{next(_request_ids)}"
            begun = complete = False

            async def counting(message):
                nonlocal begun, complete
                if message["type"] == "http.response.start":
                    begun = True
                    self.count(W_REQUESTS, *((W_ERRORS,) if message["status"] >= 500 else ()))
                    if message["status"] >= 500:
                        message = {**message, "headers": identified(message.get("headers", ()), request_id)}
                elif message["type"] == "http.response.body":
                    complete = not message.get("more_body")
                await send(message)

            try:
                await app(scope, receive, counting)
            except Exception:
                log_failure(scope, request_id)
                if complete:
                    return
                if begun:
                    raise Logged from None  # uvicorn cuts the connection
                message = f"internal server error, request {request_id}\n".encode()
                fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(message)).encode())]
                await counting({"type": "http.response.start", "status": 500, "headers": fields})
                await send({"type": "http.response.body", "body": message})

        return serve


def tell(scope, peer):
    """Says in a connection's scope who called: None if the platform does not know, or is none."""
    scope["extensions"] = {**(scope.get("extensions") or {}), PEER: {"name": peer}}


class Logged(Exception):
    """A failure whose trace is in the log already."""


def log_failure(scope, request_id, error=None):
    print(f"[{request_id}] {scope['method']} {scope['path']} failed", file=sys.stderr)
    traceback.print_exception(error) if error is not None else traceback.print_exc()
    sys.stderr.flush()


def identified(headers, request_id):
    """Header fields with the request's id, under which the log has the trace."""
    headers = [(bytes(name), bytes(value)) for name, value in headers]
    if not any(name.lower() == b"x-request-id" for name, _ in headers):
        headers.append((b"x-request-id", request_id.encode()))
    return headers


# --- by python.py's threads ------------------------------------------------------------------------------------------


class Threaded:
    def __init__(self, source, app):
        self.app = app
        self.source = source
        self.state = {}
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.told = queue.SimpleQueue()
        self.ending = None

    def run(self, threads):
        asyncio.run_coroutine_threadsafe(self.start_lifespan(), self.loop).result(LIFESPAN_SECONDS)
        server = Server(self.source, self.serve)
        server.at_end = lambda: asyncio.run_coroutine_threadsafe(self.end_lifespan(), self.loop).result(LIFESPAN_SECONDS)
        return server.run(threads)

    async def start_lifespan(self):
        self.inbox, started, self.ended = asyncio.Queue(), asyncio.Event(), asyncio.Event()
        self.supported = True
        await self.inbox.put({"type": "lifespan.startup"})

        async def send(message):
            if message["type"] == "lifespan.startup.failed":
                print(f"faasd: the application's startup failed: {message.get('message', '')}", file=sys.stderr, flush=True)
                os._exit(1)
            (started if message["type"].startswith("lifespan.startup") else self.ended).set()

        async def run():
            try:
                scope = {"type": "lifespan", "asgi": VERSIONS, "state": self.state}
                await self.app(scope, self.inbox.get, send)
            except Exception:
                # An application that knows of no lifespan says so by an exception.
                self.supported = False
                if started.is_set():
                    traceback.print_exc()
            started.set()
            self.ended.set()

        self.lifespan_task = asyncio.get_running_loop().create_task(run())
        await started.wait()

    async def end_lifespan(self):
        if self.supported:
            await self.inbox.put({"type": "lifespan.shutdown"})
            await self.ended.wait()

    def serve(self, connection, body, request_id):
        exchange = Exchange(self.loop, connection, body, request_id)
        scope = exchange.scope(self.state)
        future = asyncio.run_coroutine_threadsafe(exchange.run(self.app, scope), self.loop)
        future.add_done_callback(exchange.done)
        try:
            return exchange.answer(future)
        finally:
            exchange.hang_up()


class Exchange:
    """One request: the application's end of it in the loop's thread, the connection's in another."""

    def __init__(self, loop, connection, body, request_id):
        self.loop = loop
        self.request_id = request_id
        self.complete = False
        self.connection = connection
        self.body = body
        self.messages = queue.SimpleQueue()
        self.over = None
        self.waiting = None

    def scope(self, state):
        connection = self.connection
        path, _, query = connection.path.partition("?")
        sock = connection.connection
        try:
            local = sock.getsockname()[:2]
        except OSError:
            local = None
        scope = {
            "type": "http",
            "asgi": VERSIONS,
            "http_version": connection.request_version.partition("/")[2],
            "method": connection.command.upper(),
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in connection.headers.items()],
            "client": sock.client,
            "server": local,
            "state": state.copy(),
        }
        tell(scope, sock.peer)
        return scope

    # In the loop's thread.

    async def run(self, app, scope):
        self.over = asyncio.Event()
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if not self.complete:
                raise
            log_failure(scope, self.request_id)

    async def receive(self):
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if self.over.is_set():
            raise OSError("the client is gone")
        if message.get("more_body"):
            # Waits until the part is sent, so that a slow client slows the application and nothing piles up.
            self.waiting = self.loop.create_future()
            self.messages.put(message)
            await self.waiting
        else:
            self.complete = message["type"] == "http.response.body"
            self.messages.put(message)

    def done(self, _future):
        self.messages.put(None)

    # In the connection's thread.

    def hang_up(self):
        def over():
            if self.over is not None:
                self.over.set()
            if self.waiting is not None and not self.waiting.done():
                self.waiting.set_result(None)

        self.loop.call_soon_threadsafe(over)

    def next(self, future):
        while True:
            try:
                message = self.messages.get(timeout=PEER_CHECK_SECONDS)
            except queue.Empty:
                self.check_peer()
                continue
            if message is None:
                error = future.exception()
                raise error if error is not None else RuntimeError("the application ended without a whole answer")
            return message

    def check_peer(self):
        try:
            if not self.connection.connection.recv(1, socket.MSG_PEEK):
                raise HungUp
        except BlockingIOError:
            pass
        except OSError as e:
            raise HungUp from e

    def answer(self, future):
        start = self.next(future)
        if start["type"] != "http.response.start":
            raise RuntimeError(f"the application sent {start['type']} first")
        headers = start.get("headers", ())
        if start["status"] >= 500:
            headers = identified(headers, self.request_id)
        fields = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers]
        if any(c in "\r\n\0" for pair in fields for c in "".join(pair)):
            raise ValueError("a header field of the application's has a line break")
        fields = [(name, value) for name, value in fields if name.lower() != "transfer-encoding"]
        first = self.next(future)
        if first.get("more_body"):
            return self.connection.answer(start["status"], fields, self.parts(first, future))
        return self.connection.answer(start["status"], fields, bytes(first.get("body", b"")))

    def parts(self, message, future):
        while True:
            yield message.get("body", b"")
            if not message.get("more_body"):
                return
            waiting = self.waiting
            self.loop.call_soon_threadsafe(lambda waiting=waiting: waiting.done() or waiting.set_result(None))
            message = self.next(future)
