"""The CPython at the other end of a connection: for tests/python_peer.rs.

    peer.py client ADDRESS KEY     connects, and answers what is said there until "bye"
    peer.py server KIND KEY        listens, prints where, and does the same for one client after the other

ADDRESS is a literal; KEY is text, or "-" for none. A client that is refused exits with 7; a server goes on.
"""

import ast
import os
import signal
import sys
import tempfile
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener

signal.alarm(60)


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y


def serve(conn):
    """Does what each request, a tuple of a name and arguments, says."""
    while True:
        name, *args = conn.recv()
        if name == "bye":
            conn.close()
            return False
        elif name == "stop":
            conn.close()
            return True
        elif name == "echo":
            conn.send(args[0])
        elif name == "type":
            conn.send((type(args[0]).__name__, repr(args[0])))
        elif name == "bytes":
            # The other side sends bytes, and gets them back reversed.
            conn.send_bytes(conn.recv_bytes()[::-1])
        elif name == "large":
            # Both directions of a large message, without a copy of it over there.
            data = conn.recv_bytes()
            sound = len(data) == args[0] and data == bytes(range(256)) * (args[0] // 256)
            conn.send(sound)
            conn.send_bytes(data)
        elif name == "raise":
            try:
                {}[args[0]]
            except KeyError as error:
                conn.send(error)
        elif name == "point":
            conn.send(Point(1, "b"))
        elif name == "die":
            # A message that announces more than ever comes.
            os.write(conn.fileno(), b"\0\0\x10\0" + b"x" * args[0])
            os.kill(os.getpid(), signal.SIGKILL)


def key_of(text):
    return None if text == "-" else text.encode()


mode, where, key = sys.argv[1:]
if mode == "client":
    try:
        conn = Client(ast.literal_eval(where), authkey=key_of(key))
    except (AuthenticationError, EOFError, OSError):
        sys.exit(7)
    serve(conn)
else:
    directory = tempfile.mkdtemp()
    address = {
        "path": os.path.join(directory, "socket"),
        "abstract": "\0tokio-multiprocess-peer-%d" % os.getpid(),
        "inet": ("127.0.0.1", 0),
    }[where]
    with Listener(address, authkey=key_of(key)) as listener:
        print({"path": listener.address, "abstract": address[1:], "inet": listener.address[1]}[where], flush=True)
        stop = False
        while not stop:
            try:
                conn = listener.accept()
            except (AuthenticationError, EOFError, OSError):
                continue
            try:
                stop = serve(conn)
            except (EOFError, ConnectionError):
                pass
    os.rmdir(directory)
