"""A FastAPI app, served by uvicorn."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Sum(BaseModel):
    a: int
    b: int


@app.get("/")
async def hello():
    return {"message": "Hello from FastAPI."}


@app.post("/sum")
async def add(sum: Sum):
    return {"sum": sum.a + sum.b}
