"""A process that has imported what takes long and forks for every connection; peer.py's Peer talks to it."""
import json
import os
import signal
import socket
import sys
import traceback


def serve(path, main):
    """The first line of a connection to the socket `path` is a command line for `main`, whose standard input and
    output the connection becomes. It says {"what": "begin", "process": ...} first, that of a new process group, and
    {"what": "end", "code": ...} at last. Ends with its parent."""
    parent = os.getppid()
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(256)
    server.settimeout(2)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while os.getppid() == parent:
        try:
            link, _ = server.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            answer(server, link, main)
        link.close()


def answer(server, link, main):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    server.close()
    link.setblocking(True)
    os.dup2(link.fileno(), 0)
    os.dup2(link.fileno(), 1)
    link.close()
    print(json.dumps({"what": "begin", "process": os.getpid()}), flush=True)
    code = 1
    try:
        code = main(sys.stdin.readline().split()) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    print(json.dumps({"what": "end", "code": code}), flush=True)
    os._exit(0)
