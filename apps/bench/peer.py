"""Commands and their lines of JSON: ours, and the peer's, which is kept imported and compiled."""
import json
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time

RUNNING = set()  # process groups


def kill(group):
    RUNNING.discard(group)
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_all():
    for group in list(RUNNING):
        kill(group)


def parsed(text):
    """A line of JSON, None for anything else."""
    try:
        line = json.loads(text) if text.startswith("{") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def run_lines(command, timeout, keep=lambda line: None, cpus=None):
    """The JSON lines a command prints, each given to `keep` at once, its exit code, and the end of what it said.
    `cpus`: it runs on these alone."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True,
                                   preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None)
    except OSError as error:
        return [], 127, str(error)
    RUNNING.add(process.pid)
    lines, said = [], []

    def read():
        for line in filter(None, map(parsed, process.stdout)):
            lines.append(line)
            keep(line)

    readers = [threading.Thread(target=read), threading.Thread(target=lambda: said.append(process.stderr.read()))]
    for reader in readers:
        reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        code = 124
    finally:
        kill(process.pid)  # compilers that it started too
        for reader in readers:
            reader.join()
    return lines, code, f"took more than {timeout:.0f} s" if code == 124 else said[0].strip()[-500:]


class Link:
    """One command that the peer runs, in a process of its own."""

    def __init__(self, peer, words):
        self.peer, self.group, self.incoming = peer, None, b""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(peer.path)
        self.say(" ".join(words))

    def say(self, text):
        self.socket.sendall(text.encode() + b"\n")

    def lines(self, until, timeout, keep=lambda line: None):
        """Lines up to one with what=`until`. Returns None when that came, else why it did not."""
        deadline = time.time() + timeout
        while True:
            text, newline, rest = self.incoming.partition(b"\n")
            if newline:
                self.incoming = rest
                line = parsed(text.decode(errors="replace"))
                if line is None:
                    continue
                what = line.get("what")
                if what == "begin":
                    self.group = line["process"]
                    RUNNING.add(self.group)
                elif what == "end":
                    return None if until == "end" and line["code"] == 0 else self.peer.said()
                elif what == until:
                    return None
                else:
                    keep(line)
                continue
            self.socket.settimeout(max(0.01, deadline - time.time()))
            try:
                got = self.socket.recv(1 << 16)
            except TimeoutError:
                return f"took more than {timeout:.0f} s"
            except OSError as error:
                return str(error)
            if not got:
                return self.peer.said()
            self.incoming += got

    def close(self):
        self.socket.close()
        if self.group is not None:
            kill(self.group)


class Peer:
    """The peer's program, started once: it forks for every command (serve.py), so what it imports is imported once."""

    def __init__(self, command):
        self.folder = tempfile.TemporaryDirectory()
        self.path, self.log, self.error = self.folder.name + "/socket", self.folder.name + "/log", None
        self.process = None
        try:
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(shlex.split(command) + ["--serve", self.path], stderr=log, text=True,
                                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                                start_new_session=True)
        except OSError as error:
            self.error = str(error)
            return
        RUNNING.add(self.process.pid)
        while self.process.poll() is None:
            try:
                Link(self, ["--check"]).close()
                return
            except OSError:
                time.sleep(0.05)
        line = next(filter(None, map(parsed, self.process.stdout)), {})
        self.error = line.get("err") or self.said() or "it says nothing"

    def said(self):
        """The end of what it wrote to its standard error."""
        with open(self.log, errors="replace") as log:
            return log.read().strip()[-500:] or "it ended without a word"

    def ask(self, words, timeout):
        """The lines of a command and, when it did not succeed, why."""
        lines, link = [], Link(self, words)
        error = link.lines("end", timeout, lines.append)
        link.close()
        return lines, error

    def stop(self):
        """Nothing of it runs while ours is timed without it."""
        if self.process is not None and self.process.poll() is None:
            kill(self.process.pid)
            self.process.wait()
