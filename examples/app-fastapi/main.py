"""A FastAPI application, with a WebSocket."""

from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

app = FastAPI()


def caller(request: Request):
    """The name of who called; the address where the platform knows none, or is none."""
    return request.scope["extensions"].get("faas.peer", {}).get("name") or request.client.host


@app.get("/")
async def greet(name: str = Depends(caller)):
    return f"hello from fastapi, {name}"


@app.post("/json")
async def echo(body: dict):
    return {"you_sent": body}


@app.get("/stream")
async def stream():
    async def parts():
        for i in range(3):
            yield f"part {i}\n"

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/fail")
async def fail():
    raise RuntimeError("as it was asked to")


@app.websocket("/echo")
async def websocket(socket: WebSocket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)
