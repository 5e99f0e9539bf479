#!/usr/bin/env python3
"""Shows aegis-agent at work: agents register, stay, and vanish.

    python3 tests/demo.py [URL]

Builds the program, starts a NATS server of its own (see nats_server.py), runs
agents against it with short TTLs, and looks at the registry with
`aegis-agent list`: one agent is stopped politely and gone at once, one is
killed and gone after its TTL. Ends with 0 only if all of that was seen.
With a URL it uses that server, in a bucket of its own that it removes again.
Standard library only.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
import nats_server  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TTL, INTERVAL = 3, 1
# How late what was promised may be seen: the server looks for expired entries
# once in a while, and looking takes time here too.
GRACE = 2


class Broken(Exception):
    """The demo did not show what it promises."""


def main(arguments):
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(__doc__.strip(), file=sys.stderr)
        return 64
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, interrupt)
    try:
        binary = build()
        with tempfile.TemporaryDirectory(prefix="aegis-demo-") as directory:
            server = Server(arguments[0] if arguments else None, Path(directory))
            demo = Demo(binary, server)
            try:
                server.start()
                demo.story()
            finally:
                for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(name, signal.SIG_IGN)
                demo.stop()
                server.stop(demo.registered)
    except (Broken, nats_server.NoServer) as problem:
        print(f"\ndemo: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted, cleaned up", file=sys.stderr)
        return 130
    return 0


def interrupt(_signal, _frame):
    raise KeyboardInterrupt


def say(text=""):
    print(text, flush=True)


def build():
    say("Building: cargo build --release --locked")
    command = ["cargo", "build", "--release", "--locked", "--message-format=json-render-diagnostics"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise Broken("there is no cargo on PATH: install Rust first (rustup)") from None
    if done.returncode:
        raise Broken("the build failed, see above")
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "aegis-agent":
            return message["executable"]
    raise Broken("cargo built no aegis-agent")


class Server:
    """A NATS server: one of our own on a free loopback port, or the one at `url`."""

    def __init__(self, url, directory):
        self.own = url is None
        self.url = url
        self.directory = directory
        self.process = None
        self.bucket = f"aegis_demo_{os.urandom(4).hex()}"

    def start(self):
        if not self.own:
            say(f"Using the server at {without_login(self.url)}, bucket {self.bucket}")
            return
        binary = nats_server.find()
        log = self.directory / "server.log"
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                [binary, "--name", "demo", "--jetstream", "--addr", "127.0.0.1", "--port", "-1",
                 "--store_dir", str(self.directory / "store"), "--ports_file_dir", str(self.directory)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 10
        while self.url is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Broken(f"the NATS server did not start:\n{log.read_text()}")
            time.sleep(0.02)
            for ports in self.directory.glob("*.ports"):
                try:
                    self.url = json.loads(ports.read_text())["nats"][0]
                except ValueError:
                    pass  # half written
        said = subprocess.run([binary, "--version"], stdout=subprocess.PIPE).stdout.decode()
        say(f"Started {said.strip()} on {self.url}, its store in a temporary directory")

    def options(self):
        return ["-s", self.url, "--bucket", self.bucket]

    def environment(self):
        """Ours; with a server of our own, without anybody's NATS settings."""
        ours = dict(os.environ)
        if self.own:
            ours = {name: value for name, value in ours.items() if not name.startswith(("NATS_", "AEGIS_"))}
        return ours

    def stop(self, bucket_made):
        if self.process:
            self.process.kill()
            self.process.wait()
        elif not self.own:
            try:
                delete_bucket(self.url, self.bucket)
                say(f"Removed the bucket {self.bucket}.")
            except (OSError, ValueError) as why:
                if bucket_made:
                    say(f"The bucket {self.bucket} is left behind ({why}); remove it with: nats kv del {self.bucket}")


class Demo:
    def __init__(self, binary, server):
        self.binary = binary
        self.server = server
        self.agents = {}
        self.registered = False
        self.said = threading.Lock()

    def stop(self):
        for agent in self.agents.values():
            agent.kill()
            agent.wait()

    def story(self):
        self.heading(f"Three agents, each with a TTL of {TTL}s and a heartbeat every {INTERVAL}s")
        start = time.monotonic()
        for service, instance in (("orders-api", "host-1"), ("orders-api", "host-2"), ("payments", "host-1")):
            self.spawn(service, instance)
        self.wait_until(start, 5, "all three are registered", lambda seen: len(seen) == 3)
        self.table()

        self.heading(f"Alive: still there after {TTL + 1}s, which is longer than the TTL")
        before = self.seen()
        time.sleep(TTL + 1)
        after = self.seen()
        if after.keys() != before.keys():
            raise Broken(f"registered were {sorted(before)}, now {sorted(after)}")
        if any(after[name]["revision"] <= before[name]["revision"] for name in after):
            raise Broken("an agent did not beat")
        self.table()

        self.heading("orders-api/host-1 is stopped politely: SIGTERM")
        agent = self.agents["orders-api/host-1"]
        start = time.monotonic()
        agent.terminate()
        took = self.wait_until(start, GRACE, "it is gone", lambda seen: "orders-api/host-1" not in seen)
        if agent.wait(timeout=10) != 0:
            raise Broken(f"it ended with {agent.returncode}")
        say(f"  Gone {took:.2f}s after the signal, exit code 0.")
        self.table()

        self.heading("payments/host-1 is killed: SIGKILL")
        start = time.monotonic()
        self.agents["payments/host-1"].kill()
        left = self.seen().get("payments/host-1")
        beat = time.monotonic() - left["ageSeconds"] if left else 0
        if left is None:
            raise Broken("its entry was gone at once: nothing was shown")
        say("  Its entry is still there, and may be for one TTL after the last heartbeat:")
        self.table()
        took = self.wait_until(start, TTL + GRACE, "its entry expires", lambda seen: "payments/host-1" not in seen)
        lived = time.monotonic() - beat
        if lived < TTL - 0.2:
            raise Broken(f"its entry was gone {lived:.2f}s after its last heartbeat, before its TTL")
        say(f"  Gone {took:.2f}s after the kill, {lived:.2f}s after its last heartbeat: its TTL is {TTL}s.")
        self.table()

        self.heading("The last one is stopped with Ctrl-C: SIGINT")
        start = time.monotonic()
        self.agents["orders-api/host-2"].send_signal(signal.SIGINT)
        took = self.wait_until(start, GRACE, "it is gone", lambda seen: not seen)
        say(f"  Gone after {took:.2f}s; the registry is empty.")
        say()

    def heading(self, text):
        say(f"\n== {text}")

    def spawn(self, service, instance):
        command = [
            self.binary, "run", "--service", service, "--instance", instance, "--service-version", "1.4.2",
            "--ttl", f"{TTL}s", "--interval", f"{INTERVAL}s",
        ] + self.server.options()  # fmt: skip
        agent = subprocess.Popen(
            command, env=self.server.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        name = f"{service}/{instance}"
        self.agents[name] = agent
        threading.Thread(target=self.relay, args=(name, agent.stderr), daemon=True).start()

    def relay(self, name, stderr):
        """Prints what an agent says, without the time and the program's name."""
        for line in stderr:
            text = line.decode(errors="replace").rstrip()
            with self.said:
                say(f"  {name:17} | {text.partition('aegis-agent: ')[2] or text}")

    def list(self, *arguments):
        done = subprocess.run(
            [self.binary, "list", *arguments, *self.server.options()], env=self.server.environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20,
        )  # fmt: skip
        if done.returncode == 69 and not self.registered:
            return '{"instances": []}'  # the first agent is about to make the bucket
        if done.returncode:
            raise Broken(f"`list` ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def seen(self):
        """The instances of the registry by service/instance."""
        instances = json.loads(self.list("--json"))["instances"]
        self.registered = self.registered or bool(instances)
        return {f"{one['serviceName']}/{one['instanceId']}": one for one in instances}

    def table(self):
        with self.said:
            for line in self.list().splitlines():
                say(f"    {line}")

    def wait_until(self, start, within, what, is_so):
        """Looks until it is so; the seconds since `start`."""
        while True:
            seen = self.seen()
            took = time.monotonic() - start
            if is_so(seen):
                return took
            if took > within:
                raise Broken(f"after {took:.1f}s not true that {what}; in the registry: {sorted(seen) or 'nothing'}")
            time.sleep(0.02)


def without_login(url):
    return ", ".join(one.rpartition("@")[2] if "@" in one else one for one in url.split(","))


def delete_bucket(url, bucket):
    """Deletes a bucket with the few words of the NATS protocol that it takes;
    raises where that needs more (TLS, keys)."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    if parts.scheme != "nats" or "," in url:
        raise ValueError("this demo speaks to one server, without TLS")
    with socket.create_connection((parts.hostname, parts.port or 4222), timeout=5) as connection:
        words = connection.makefile("rb")
        info = json.loads(words.readline()[len("INFO ") :])
        if info.get("tls_required"):
            raise ValueError("the server wants TLS")
        login = {"verbose": False, "pedantic": False, "lang": "python", "version": "0"}
        if parts.password is not None:
            login.update(user=unquote(parts.username or ""), **{"pass": unquote(parts.password)})
        elif parts.username:
            login.update(auth_token=unquote(parts.username))
        inbox = f"_INBOX.{bucket}"
        connection.sendall(
            f"CONNECT {json.dumps(login)}\r\nSUB {inbox} 1\r\n"
            f"PUB $JS.API.STREAM.DELETE.KV_{bucket} {inbox} 0\r\n\r\n".encode()
        )
        while True:
            line = words.readline()
            if not line or line.startswith(b"-ERR"):
                raise ValueError(line.decode(errors="replace").strip() or "the server hung up")
            if line.startswith(b"MSG "):
                answer = json.loads(words.read(int(line.split()[-1])))
                if not answer.get("success"):
                    raise ValueError(answer.get("error", {}).get("description", "refused"))
                return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
