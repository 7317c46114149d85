"""Says each argument to the server and prints the answers: `client.py URL MESSAGE…`."""

import sys

from websockets.sync.client import connect

with connect(sys.argv[1]) as connection:
    for message in sys.argv[2:]:
        connection.send(message)
        print(connection.recv(timeout=20))
