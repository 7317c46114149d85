"""A WebSocket server that says back what it is told."""

import asyncio
import os
import signal

from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def main():
    async with serve(echo, os.environ["HOST"], int(os.environ["PORT"])) as server:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
        await server.wait_closed()


asyncio.run(main())
