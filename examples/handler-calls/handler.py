"""A function that calls another, by the grant in faas.toml: `faas deploy hello` that one first."""

import http.client


def handle(event, context):
    connection = http.client.HTTPConnection("hello.faas", timeout=5)
    connection.request("GET", "/")
    answer = connection.getresponse()
    return f"hello.faas answered {answer.status}: {answer.read().decode()}"
