import socket
import sys

# Says that it is ready, and answers every connection with its own name until it is told to drain.
control = socket.socket(fileno=3)
control.send(bytes([1, 0, 3, 0, 0, 0, 32, 0]))
print("serving", sys.argv[1], sys.argv[2])
while True:
    message, descriptors, _, _ = socket.recv_fds(control, 4096, 64)
    if not message or message[2] == 2:
        control.send(bytes([1, 0, 4, 0, 0, 0, 32, 0]))
        break
    for descriptor in descriptors:
        with socket.socket(fileno=descriptor) as connection:
            connection.sendall(sys.argv[1].encode())
