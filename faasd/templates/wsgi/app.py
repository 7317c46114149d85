from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def greet():
    return f"hello, {request.args.get('name', 'world')}\n"


@app.post("/")
def echo():
    return {"you_sent": request.get_json()}
