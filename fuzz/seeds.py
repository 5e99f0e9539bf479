#!/usr/bin/env python3
"""Makes the seeds from real servers: greetings, replies and headers.

    python3 fuzz/seeds.py

Starts a nats-server of several versions (tests/nats_server.py finds them) and
writes what they say to fuzz/seeds/. The other seeds there, for what no server
says, are written below by hand. Standard library only.
"""

import json
import socket
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"
VERSIONS = ["2.10.25", "2.11.11", "2.12.8", "2.15.1"]
KEY = "service-instances__orders-api__host-1"
RECORD = (
    '{"serviceName":"orders-api","instanceId":"host-1","version":"1.4.2","status":"ACTIVE",'
    '"lastHeartbeat":"2026-11-23T09:37:31.979155+00:00","stickyActiveGroup":null,'
    '"metadata":{"host":"host-1","pid":"4711"}}'
)


def write(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.file = self.socket.makefile("rb")
        self.info = self.file.readline()
        self.socket.sendall(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _I.> 1\r\n'
        )

    def ask(self, subject, payload=b"", header=b""):
        size = f"{len(header)} " if header else ""
        verb = "HPUB" if header else "PUB"
        line = f"{verb} {subject} _I.1 {size}{len(header) + len(payload)}\r\n"
        self.socket.sendall(line.encode() + header + payload + b"\r\n")
        return self.message()

    def message(self):
        """Subject line, header block and payload of the next message."""
        while True:
            line = self.file.readline().decode()
            words = line.split()
            if words[0] == "PING":
                self.socket.sendall(b"PONG\r\n")
            if words[0] in ("MSG", "HMSG"):
                body = self.file.read(int(words[-1]) + 2)[:-2]
                head = int(words[-2]) if words[0] == "HMSG" else 0
                return words, body[:head], body[head:]


def capture(version):
    binary = subprocess.run(
        ["python3", ROOT / "tests/nats_server.py", version],
        check=True, capture_output=True, text=True,
    ).stdout.strip()
    with socket.socket() as free, tempfile.TemporaryDirectory() as store:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [binary, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", store]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            for line in server.stderr:
                if "Server is ready" in line:
                    break
            ask_all(version, Client(port))
        finally:
            server.kill()
            server.wait()


def ask_all(version, client):
    def reply(name, subject, body=None, header=b""):
        payload = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        _, head, data = client.ask(subject, payload, header)
        if head:
            write("header", f"{name}-{version}", head)
        if data:
            write("reply", f"{name}-{version}", data)

    write("handshake", version, b"\x07" + client.info)
    write("version", version, json.loads(client.info[5:])["version"])
    stream, all_keys = "KV_service_registry", "$KV.service_registry.>"
    reply("no-stream", f"$JS.API.STREAM.INFO.{stream}")
    config = {
        "name": stream, "subjects": [all_keys], "max_msgs_per_subject": 1, "discard": "new",
        "storage": "file", "num_replicas": 1, "allow_rollup_hdrs": True, "deny_delete": True,
        "allow_direct": True, "allow_msg_ttl": True,
    }
    reply("create", f"$JS.API.STREAM.CREATE.{stream}", config)
    ttl = b"NATS/1.0\r\nNats-TTL: 30s\r\n\r\n"
    subject = f"$KV.service_registry.{KEY}"
    reply("ack", subject, RECORD.encode(), ttl)
    write("header", f"stored-{version}", ttl)
    conflict = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 7\r\n\r\n"
    reply("conflict", subject, RECORD.encode(), conflict)
    reply("bad-ttl", subject, RECORD.encode(), b"NATS/1.0\r\nNats-TTL: soon\r\n\r\n")
    reply("info", f"$JS.API.STREAM.INFO.{stream}")
    reply("get", f"$JS.API.STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    reply("get-none", f"$JS.API.STREAM.MSG.GET.{stream}", {"last_by_subj": subject + "x"})
    reply("direct", f"$JS.API.DIRECT.GET.{stream}.{subject}")
    reply("direct-none", f"$JS.API.DIRECT.GET.{stream}.{subject}x")
    consumer = {"stream_name": stream, "config": {
        "name": "c", "deliver_policy": "last_per_subject", "ack_policy": "none",
        "filter_subject": all_keys, "mem_storage": True, "inactive_threshold": 5_000_000_000,
    }}
    reply("consumer", f"$JS.API.CONSUMER.CREATE.{stream}.c.{all_keys}", consumer)
    pull = {"batch": 1, "no_wait": True}
    next_message = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.c"
    words, _, _ = client.ask(next_message, json.dumps(pull).encode())
    write("reply", f"delivery-{version}", words[3])
    reply("no-messages", next_message, pull)
    poison = b"NATS/1.0\r\nno colon\r\n\r\n"
    reply("ack-poison", f"$KV.service_registry.service-instances__bad__1", b"x", poison)
    reply("get-poison", f"$JS.API.STREAM.MSG.GET.{stream}", {"seq": 2})
    purge = {"filter": subject, "seq": 100}
    reply("purge", f"$JS.API.STREAM.PURGE.{stream}", purge)


def by_hand():
    write("record", "golden", f"{KEY}\n{RECORD}")
    write("record", "old-key", "service-instances.orders-api.host-1\n" + RECORD)
    snake = RECORD.replace("serviceName", "service_name").replace("lastHeartbeat", "last_heartbeat")
    write("record", "snake", "service-instances_orders-api_host-1\n" + snake)
    write("record", "bare", KEY + '\n{"version":"1.0.0","lastHeartbeat":"2026-11-23T09:37:31"}')
    write("record", "odd-time", KEY + '\n{"lastHeartbeat":"2026-11-23T09:37:31.9+14:00","status":"SHUTDOWN"}')
    for number, key in enumerate([KEY, "service-instances.a-b.c", "service-instances_a_b", "echo-service", "*", "a.>"]):
        write("key", str(number), key)
    for number, text in enumerate(["30s", "500ms", "1m", "2.5h", "90", "1h30m", "-1s", "never", "1e9s", "9223372036s", "0"]):
        write("duration", str(number), text)
    for number, text in enumerate(["1.4.2", "2.14.0-RC.1", "v2.11.4-vendor.1+7", "2026-11-23T09:37:31.979155+00:00", "2026-02-29T24:00:60Z"]):
        write("version", str(number), text)
    for number, text in enumerate(["nats://127.0.0.1:4222", "tls://u:p%40ss@host:1,b", "nats://token@[::1]:4222", "ws://x", "host"]):
        write("url", str(number), text)
    write("context", "full", json.dumps({
        "description": "d", "url": "nats://a,tls://b:1", "user": "u", "password": "p", "creds": "~/a.creds",
        "nkey": "file:///n", "cert": "$A/c.pem", "key": "${A}/k.pem", "ca": "/ca.pem", "inbox_prefix": "_I",
        "nsc": "", "jetstream_domain": "", "tls_first": False,
    }))
    write("context", "op", '{"password":"op://vault/item"}')
    write("context", "list", "[1,2]")
    for name, text in {
        "greeting": "INFO {}\r\n", "error": "-ERR 'maximum connections exceeded'\r\n",
        "http": "HTTP/1.1 400 Bad Request\r\n\r\n", "tls": "\x15\x03\x01\x00\x02\x02\x28",
    }.items():
        # The first byte is the size of the pieces in which the rest is read.
        write("handshake", name, b"\x07" + text.encode("latin-1"))
    for name, text in {
        "refusal": "Permissions Violation for Publish to \"$JS.API.CONSUMER.CREATE.KV_a.aegis-x.$KV.a.>\"",
        "subscribe": "Permissions Violation for Subscription to \"_INBOX.x.*\"",
        "login": "unexpected line while connecting: Err(\"Authorization Violation\")",
        "tls": "TLS error: invalid peer certificate: UnknownIssuer",
        "alert": "TLS error: received fatal alert: HandshakeFailure",
        "marker": "NATS/1.0\r\nKV-Operation: PURGE\r\nNats-Rollup: sub\r\nNats-TTL: 60s\r\n\r\n",
        "server-marker": "NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: 1s\r\n\r\n",
        "poison": "NATS/1.0\r\nno colon\r\n\r\n",
    }.items():
        write("header", name, text)
    for name, words in {
        "run": ["-s", "nats://a", "run", "--service=abc", "--ttl", "30s", "--meta=a=b", "--interval", "10s"],
        "list": ["list", "--json", "--all", "--service", "abc", "--stale-after=1m", "--bucket=b"],
        "cleanup": ["cleanup", "--dry-run", "--only", "no-ttl", "--max-removals=5"],
        "check": ["check", "--format", "nagios", "--timeout=1s", "--inbox-prefix", "_I"],
        "help": ["--help"],
        "login": ["list", "--user", "a", "--password-file", "/p", "--tlsca=/c"],
    }.items():
        write("arguments", name, "\n".join(words))
    # creds/valid was written by the tests' own `Operator` (logins.rs), which
    # signs with keys that are in no use.
    write("creds", "damaged", (
        "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJKV1QifQ.eyJzdWIiOiJVQSIsImV4cCI6MTYwMDAwMDAwMH0.c2ln\n"
        "------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n"
        "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM\n------END USER NKEY SEED------\n"
    ))
    for name in ["client-ec", "client-ec-key", "client-ec-key-encrypted", "client-p521"]:
        write("creds", name, (ROOT / f"tests/certificates/{name}.pem").read_bytes())


if __name__ == "__main__":
    by_hand()
    for version in VERSIONS:
        capture(version)
