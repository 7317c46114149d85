"""A FastAPI application, with a WebSocket."""

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.get("/")
async def greet(request: Request):
    return f"hello from fastapi, {request.client.host}"


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
