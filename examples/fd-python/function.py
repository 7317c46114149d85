import mmap, os, signal, socket, struct, sys

HEADER = struct.Struct("<HHHH")
RECORD = struct.Struct("<QQQII")
CALLER = struct.Struct("<16sHHH")
control = socket.socket(fileno=3)
status = memoryview(mmap.mmap(4, 4096)).cast("Q")  # words of 8 bytes: RECEIVED is 64 / 8
RECEIVED, FINISHED, REQUESTS, ERRORS, READY = 8, 9, 10, 11, 12

def say(kind):
    control.send(HEADER.pack(1, kind, 0, RECORD.size))

def terminate(*_):
    say(4)
    sys.exit(0)

signal.signal(signal.SIGTERM, terminate)
status[READY] = 1
say(3)
while True:
    data, ancillary, flags, _ = control.recvmsg(8192, socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC)
    fds = [fd for level, kind, content in ancillary if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
           for fd in struct.unpack(f"{len(content) // 4}i", content)]
    if not data:
        sys.exit(0)  # the platform is gone
    version, kind, count, record_bytes = HEADER.unpack_from(data)
    if kind == 2:
        terminate()
    if version != 1 or kind != 1 or record_bytes < RECORD.size + CALLER.size \
            or count != len(fds) and not flags & socket.MSG_CTRUNC:
        sys.exit("a malformed message")
    status[RECEIVED] += count
    status[FINISHED] += count - len(fds)
    status[ERRORS] += count - len(fds)
    for n, fd in enumerate(fds):
        at = HEADER.size + n * record_bytes
        id, accepted, deadline, attempt, _ = RECORD.unpack_from(data, at)
        address, port, begin, length = CALLER.unpack_from(data, at + RECORD.size)
        name = data[HEADER.size + count * record_bytes:][begin:begin + length]
        with socket.socket(fileno=fd) as connection:
            connection.settimeout(10)
            try:
                connection.recv(65536)
                body = b"connection %d of %b\n" % (id, name)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            except OSError:
                pass  # the client is gone
        status[REQUESTS] += 1
        status[FINISHED] += 1
