#!/usr/bin/env python3
"""The example of packaging/examples/haproxy, with a real HAProxy and a stream of requests.

Backends come, die, stop, drain and restart, each beside an agent of its own; `aegis-agent watch`
keeps HAProxy's servers current. Seen from the requests: a backend whose agent was killed gets
none after its TTL and a second, one whose agent stopped none after a second, a drained one none
after a second, and HAProxy is asked, never reloaded. No request fails meanwhile.

Without haproxy it says SKIPPED and ends with 0. The program is that of AEGIS_BINARY, or a debug
build. Standard library only, and tests/nats_server.py.
"""

import http.client
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

import nats_server  # noqa: E402

EXAMPLE = ROOT / "packaging" / "examples" / "haproxy"
TTL = 4
# Beside 50 agents, HAProxy and a stream of requests, on a machine with other work.
STORM = 50


def main():
    haproxy = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/sbin")
    if haproxy is None:
        print("SKIPPED: there is no haproxy here (Debian: haproxy)")
        return
    binary = os.environ.get("AEGIS_BINARY")
    if binary is None:
        subprocess.run(["cargo", "build", "--locked", "--quiet"], cwd=ROOT, check=True)
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        binary = str(target / "debug" / "aegis-agent")
    with tempfile.TemporaryDirectory() as directory:
        scene = Scene(Path(directory), haproxy, binary)
        try:
            scene.play()
        except BaseException:
            scene.show()
            raise
        finally:
            scene.end()
    print("all of it was seen")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(what, within, look):
    start = time.monotonic()
    while not look():
        if time.monotonic() - start > within:
            raise AssertionError(f"not seen within {within} s: {what}")
        time.sleep(0.02)
    print(f"{what}: after {time.monotonic() - start:.2f} s")


class Backend:
    """Answers with its name, and keeps the times at which it was asked."""

    def __init__(self, name):
        self.name, self.asked = name, []
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                backend.asked.append(time.monotonic())
                self.send_response(200)
                self.send_header("Content-Length", str(len(backend.name)))
                self.end_headers()
                self.wfile.write(backend.name.encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # HAProxy resets connections on which it has its answer.
        self.server.handle_error = lambda *_: None
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def asked_after(self, moment):
        return [asked - moment for asked in self.asked if asked > moment]


class Scene:
    def __init__(self, directory, haproxy, binary):
        self.directory, self.binary = directory, binary
        self.processes, self.logs = [], []
        self.statuses, self.running = [], True
        port, self.front = free_port(), free_port()
        self.url = f"nats://127.0.0.1:{port}"
        self.start("nats", nats_server.find(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd",
                   directory / "store")  # fmt: skip
        wait("a bucket", 10, lambda: self.aegis("init").returncode == 0)
        self.socket = directory / "admin.sock"
        text = (EXAMPLE / "haproxy.cfg").read_text()
        text = text.replace("/run/haproxy/admin.sock", str(self.socket))
        text = text.replace("bind :8000", f"bind 127.0.0.1:{self.front}")
        (directory / "haproxy.cfg").write_text(text)
        self.haproxy = self.start("haproxy", haproxy, "-db", "-f", directory / "haproxy.cfg")
        wait("HAProxy", 10, self.socket.exists)
        self.calls = directory / "calls"
        self.calls.touch()
        counted = directory / "counted"
        counted.write_text(
            f'#!/bin/sh\necho "$AEGIS_EVENTS" >>{self.calls}\n'
            f"exec {sys.executable} {EXAMPLE}/update-haproxy {self.socket} orders\n"
        )
        counted.chmod(0o755)
        self.start("watch", binary, "watch", "orders-api", "-s", self.url, "--exec", counted)
        threading.Thread(target=self.ask, daemon=True).start()

    def start(self, name, *words):
        log = open(self.directory / f"{name}.log", "wb")
        self.logs.append(log.name)
        words = [str(word) for word in words]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def aegis(self, *words):
        words = [self.binary, *words, "-s", self.url]
        return subprocess.run(words, capture_output=True, text=True, timeout=20)

    def agent(self, name, port):
        return self.start(
            f"agent-{name}", self.binary, "run", "-s", self.url, "--service=orders-api",
            f"--instance={name}", f"--ttl={TTL}s", "--meta=address=127.0.0.1", f"--meta=port={port}",
            f"--drain-file={self.directory / name}.drain",
        )  # fmt: skip

    def ask(self):
        """Requests, one after the other, each on a connection of its own."""
        while self.running:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.front, timeout=5)
                connection.request("GET", "/", headers={"Connection": "close"})
                self.statuses.append((time.monotonic(), connection.getresponse().status))
                connection.close()
            except OSError as problem:
                self.statuses.append((time.monotonic(), str(problem)))
            time.sleep(0.002)

    def play(self):
        one, two, three, four = (Backend(name) for name in ("one", "two", "three", "four"))
        killed, stopped, drained, _stays = (
            self.agent(backend.name, backend.port) for backend in (one, two, three, four)
        )
        for backend in (one, two, three, four):
            wait(f"{backend.name} gets requests", 10, lambda: backend.asked)
        begins = time.monotonic()

        killed.kill()
        moment = time.monotonic()
        stopped.send_signal(signal.SIGTERM)
        drain = self.directory / "three.drain"
        drain.write_text("kernel upgrade\n")
        drained.send_signal(signal.SIGHUP)
        time.sleep(TTL + 3)
        for backend, limit in ((one, TTL + 1), (two, 1), (three, 1)):
            last = max(backend.asked_after(moment), default=0)
            print(f"{backend.name}: the last request {last:.2f} s after (limit {limit} s)")
            assert last <= limit, backend.name
        assert four.asked_after(moment + TTL + 2), "the one that stays is asked"
        drain.unlink()
        drained.send_signal(signal.SIGHUP)
        back = time.monotonic()
        wait("three is back", 2, lambda: three.asked_after(back))
        # No request failed, whoever came and went: each went to somebody who was there.
        bad = [status for at, status in self.statuses if at > begins and status != 200]
        assert not bad, bad[:5]
        print(f"{len(self.statuses)} requests, none failed")

        self.storm(four.port)
        assert self.haproxy.poll() is None, "the same HAProxy all the time"

    def storm(self, port):
        """Fifty instances restart at once."""
        # Nobody listens there; no two are the same.
        ports = [20_000 + number for number in range(STORM)]
        agents = [self.agent(f"i{number}", ports[number]) for number in range(STORM)]
        slots = lambda: self.listed() >= STORM + 2  # noqa: E731
        wait(f"{STORM} more", 30, slots)
        time.sleep(1)
        before = len(self.calls.read_text().splitlines())
        began = time.monotonic()
        for agent in agents:
            agent.terminate()
        for agent in agents:
            agent.wait(20)
        for number in range(STORM):
            self.agent(f"i{number}", ports[number])
        wait("all of them are back", 30, slots)
        time.sleep(1)
        took = time.monotonic() - began
        events = [int(line) for line in self.calls.read_text().splitlines()[before:]]
        print(f"{STORM} restarts within {took:.1f} s: {sum(events)} changes, {len(events)} calls")
        # Changes within 200 ms go together, and one call at a time.
        assert len(events) <= took / 0.2 + 1, events
        assert sum(events) >= 2 * STORM, events

    def listed(self):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(b"show servers state orders\n")
            text = b""
            while part := connection.recv(65536):
                text += part
        rows = [line.split() for line in text.decode().splitlines()[2:] if line]
        return sum(1 for row in rows if int(row[6]) & 0x7B == 0)

    def show(self):
        for name in self.logs:
            text = Path(name).read_text(errors="replace").strip()
            if text and "agent-i" not in name:
                print(f"--- {Path(name).name}\n{text[-3000:]}", file=sys.stderr)

    def end(self):
        self.running = False
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


if __name__ == "__main__":
    main()
