"""A function with its standard answers: text, JSON, a stream, a failure."""


def handle(event, context):
    if event.path == "/json":
        return {"you_sent": event.json()}
    if event.path == "/stream":
        return (f"part {i}\n" for i in range(3))
    if event.path == "/fail":
        raise RuntimeError("as it was asked to")
    if event.method == "POST":
        return event.body
    return f"hello from {context.function}, {context.peer or context.client[0]}\n"
