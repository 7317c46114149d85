"""A WSGI app, served by two workers of gunicorn."""

import os


def app(environ, start_response):
    body = f"Hello from gunicorn's worker {os.getpid()}.\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
