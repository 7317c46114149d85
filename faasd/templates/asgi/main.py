from fastapi import FastAPI

app = FastAPI(title="{{name}}")


@app.get("/")
async def greet(name: str = "world"):
    return {"hello": name}


@app.post("/")
async def echo(body: dict):
    return {"you_sent": body}
