"""A Flask application."""

from flask import Flask, Response, request

app = Flask(__name__)


@app.get("/")
def greet():
    return f"hello from flask, {request.remote_user or request.remote_addr}"


@app.post("/json")
def echo():
    return {"you_sent": request.get_json()}


@app.get("/stream")
def stream():
    return Response((f"part {i}\n" for i in range(3)), mimetype="text/plain")


@app.get("/fail")
def fail():
    raise RuntimeError("as it was asked to")
