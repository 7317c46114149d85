"""A function. `event` and `context` are described in docs/HANDLERS.md."""


def handle(event, context):
    if event.method == "POST":
        return {"you_sent": event.json()}
    return f"hello, {event.query.get('name', 'world')}\n"
