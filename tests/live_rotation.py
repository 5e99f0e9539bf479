"""Logins replaced under a running agent, in every way that is documented.

A part of tests/live_systemd.py: docs/logins.md and docs/systemd.md, on its live
systemd. A program of the test's own asks the registry for the entry twenty times
a second; between two revisions there is never more than a heartbeat (1 s) and
some slack, and the entry is never away. Standard library only.
"""

import base64
import datetime
import hashlib
import json
import time
from pathlib import Path

CERTIFICATES = Path(__file__).resolve().parent / "certificates"
UNIT = "aegis-agent@billing.service"
# Between two revisions: a heartbeat each second, and a busy machine. An exchange
# that times out would take 5 s.
LIMIT = 4
ENVIRONMENT = "NATS_URL={scheme}://127.0.0.1:4224\nAEGIS_TTL=10s\nAEGIS_INTERVAL=1s\n"
ETC = "/etc/aegis-agent"

# Asks for the entry and writes a line when its revision changes: its number and
# the time at which the server stored it, or that there is none.
WATCHER = r"""
import json, socket, ssl, sys, time
connect, bucket, key, certificate = json.loads(sys.argv[1])
connection = socket.create_connection(("127.0.0.1", 4224), timeout=5)
words = connection.makefile("rb")
words.readline()
if certificate:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(*certificate)
    connection = context.wrap_socket(connection)
    words = connection.makefile("rb")
options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "python",
           "version": "0", "name": "watcher", **connect}
connection.sendall(b"CONNECT %s\r\nSUB inbox 1\r\nPING\r\n" % json.dumps(options).encode())
subject = b"$JS.API.DIRECT.GET.KV_%s.$KV.%s.%s" % (bucket.encode(), bucket.encode(), key.encode())
last = None
while True:
    connection.sendall(b"PUB %s inbox 0\r\n\r\n" % subject)
    while True:
        line = words.readline()
        if line.startswith(b"PING"):
            connection.sendall(b"PONG\r\n")
        elif line.startswith(b"-ERR") or not line:
            sys.exit(line.decode())
        elif line.startswith(b"HMSG"):
            size, total = (int(word) for word in line.split()[-2:])
            headers = words.read(total + 2)[:size].decode()
            break
    fields = dict(line.split(": ", 1) for line in headers.split("\r\n")[1:] if ": " in line)
    now = "absent - -"
    if "Nats-Sequence" in fields:
        is_marker = "KV-Operation" in fields or "Nats-Marker-Reason" in fields
        now = " ".join([fields["Nats-Sequence"], fields["Nats-Time-Stamp"], "marker" if is_marker else "put"])
    if now != last:
        print(now, flush=True)
        last = now
    time.sleep(0.05)
"""


def tell(story):
    Rotation(story).tell()


class Rotation:
    def __init__(self, story):
        self.story = story
        self.run = story.run
        self.expect = story.expect

    def tell(self):
        units = self.story.root_path("/etc/systemd/system")
        (units / "billing.service").write_text("[Service]\nExecStart=/bin/sleep infinity\n")
        (units / "rotation.service").write_text(
            "[Service]\nExecStart=/usr/local/bin/nats-server -c /etc/rotation.conf\nExecReload=/bin/kill -HUP $MAINPID\n"
        )
        self.story.root_path("/usr/local/bin/watcher").write_text(WATCHER)
        # As docs/systemd.md has it, for files that a reload picks up.
        self.story.drop_in(UNIT, "group", "[Service]\nSupplementaryGroups=aegis-agents\n")
        self.run("systemctl", "start", "billing.service")
        try:
            self.passwords_and_contexts()
            self.nkeys()
            self.credentials()
            self.certificates()
        finally:
            self.run("systemctl", "stop", "watcher.service", "rotation.service", "billing.service", check=False)
        self.run("sh", "-c", f"rm -rf {ETC}/billing.* {ETC}/nats /etc/systemd/system/{UNIT}.d")
        self.run("systemctl", "daemon-reload")

    # The scenes.

    def passwords_and_contexts(self):
        def users(password):
            return [["agent", password], ["one", "pw-1"], ["two", "pw-2"], ["watcher", "w"]]

        self.server(users=users("first"))
        self.place("billing.password", "first\n")
        self.agent(f"NATS_USER=agent\nAEGIS_OPTIONS=--password-file {ETC}/billing.password\n", "agent")
        self.watch({"user": "watcher", "pass": "w"})
        # The server does not know it yet.
        self.place("billing.password", "second\n")
        self.through("a reload with a password that is refused changes nothing", self.reload, "agent")
        self.through("the server changes the password, no signal to the agent",
                     lambda: self.server(users=users("second")), "agent")  # fmt: skip
        # An option that the unit has was given at its start.
        self.context(user="one", password="pw-1")
        self.agent("NATS_URL=\nNATS_CONTEXT=rotation\n", "one")
        self.watch({"user": "watcher", "pass": "w"})
        self.context(user="two", password="pw-2")
        self.through("the context replaced, by a reload", self.reload, "two")
        self.context(user="one", password="pw-1")
        self.through("the context replaced, by SIGHUP", self.hang_up, "one")
        self.handed_over()
        self.context_of_the_host()

    def context_of_the_host(self):
        """NATS_CONTEXT in agent.env: for all units, and for calls by hand."""
        kept = self.story.root_path(f"{ETC}/agent.env")
        text = kept.read_text()
        context = {"url": "nats://127.0.0.1:4224", "user": "one", "password": "pw-1"}
        self.place("nats/context/host.json", json.dumps(context), mode="644")
        kept.write_text("NATS_CONTEXT=host\n")
        agent = "aegis-agent@orders-api.service"
        self.run("systemctl", "restart", agent)
        self.story.wait("NATS_CONTEXT in agent.env, for an agent: one", 10, lambda: self.identity("orders-api") == {"one"})
        for what, command in (
            ("a call by hand", ["aegis-agent", "list", "orders-api", "--names"]),
            ("the check", ["systemctl", "start", "aegis-agent-check.service"]),
            ("the cleanup", ["systemctl", "start", "aegis-agent-cleanup.service"]),
        ):
            before = self.ask("varz")["total_connections"]
            self.run(*command)
            self.expect(f"for {what}", self.ask("varz")["total_connections"] == before + 1)
        kept.write_text(text)
        self.run("systemctl", "restart", agent)

    def handed_over(self):
        """LoadCredential=, which takes a restart."""
        self.story.drop_in(UNIT, "secret", f"[Service]\nLoadCredential=password:{ETC}/billing.secret\n"
                           "Environment=\"AEGIS_OPTIONS=--password-file %d/password\"\n")  # fmt: skip
        for user, password in (("one", "pw-1"), ("two", "pw-2")):
            self.environment(f"NATS_USER={user}\n")
            self.place("billing.secret", password + "\n", owner="root:root", mode="600")
            at = len(self.lines())
            self.run("systemctl", "restart", UNIT)
            self.story.wait(f"a secret of LoadCredential=, by a restart: {user}", 10, lambda: self.identity() == {user})
            self.wait_for_revisions(2)
            stamps = self.stamps(at, puts=False)
            away = max(after - before for (before, kind), (after, _) in zip(stamps, stamps[1:]) if kind != "put")
            self.expect(f"the entry was away for {away * 1000:.0f} ms", away < LIMIT)
        self.run("rm", f"/etc/systemd/system/{UNIT}.d/secret.conf")
        self.run("systemctl", "daemon-reload")

    def nkeys(self):
        first, second = Key("user", 1), Key("user", 2)
        self.server(users=[["watcher", "w"]], nkeys=[first, second])
        self.place("billing.nk", first.seed() + "\n")
        self.agent(f"NATS_NKEY={ETC}/billing.nk\n", first.public())
        self.watch({"user": "watcher", "pass": "w"})
        self.place("billing.nk", second.seed() + "\n")
        self.through("an nkey replaced, by a reload", self.reload, second.public())
        self.place("billing.nk", first.seed() + "\n")
        self.through("an nkey replaced, no signal: the server withdraws the old one",
                     lambda: self.server(users=[["watcher", "w"]], nkeys=[first]), first.public())  # fmt: skip

    def credentials(self):
        operator, system, account = Key("operator", 3), Key("account", 4), Key("account", 5)
        names = {name: Key("user", number) for number, name in enumerate(("first", "second", "third", "watcher"), 6)}

        def creds(name, expires=None):
            user = names[name]
            return (
                f"-----BEGIN NATS USER JWT-----\n{user_jwt(account, name, user, expires)}\n------END NATS USER JWT------\n\n"
                f"-----BEGIN USER NKEY SEED-----\n{user.seed()}\n------END USER NKEY SEED------\n"
            )

        self.configure(
            f"operator: {operator_jwt(operator)}\nsystem_account: {system.public()}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {system.public()}: {account_jwt(operator, 'SYS', system, 0)}, "
            f"{account.public()}: {account_jwt(operator, 'MAIN', account, -1)} }}\n"
        )
        self.run("systemctl", "restart", "rotation.service")
        self.place("billing.creds", creds("first"))
        self.agent(f"NATS_CREDS={ETC}/billing.creds\n", names["first"].public())
        self.watch({"jwt": user_jwt(account, "watcher", names["watcher"], None, bearer_token=True)})
        self.place("billing.creds", creds("second", int(time.time()) + 6))
        self.through("credentials replaced, by a reload", self.reload, names["second"].public())
        self.place("billing.creds", creds("third"))
        self.through("credentials replaced, no signal: the old ones end", lambda: None, names["third"].public())
        data = base64.b64encode(creds("first").encode()).decode()
        self.context(creds=f"data:;base64,{data}")
        self.environment("NATS_URL=\nNATS_CONTEXT=rotation\n")
        self.through("a context that holds credentials, by a reload", self.reload, names["first"].public())

    def certificates(self):
        for path in CERTIFICATES.glob("*.pem"):
            self.place(f"../{path.name}", path.read_text(), mode="644")

        def tls(certificate):
            return (
                f'tls {{ cert_file: "/etc/{certificate}.pem", key_file: "/etc/{certificate}-key.pem", ca_file: "/etc/ca.pem", '
                "verify_and_map: true }\n"
            )

        def identity(name):
            return f"CN=aegis-agent test {name}"

        def client(name):
            self.place("billing.pem", (CERTIFICATES / f"{name}.pem").read_text())
            self.place("billing.key", (CERTIFICATES / f"{name}-key.pem").read_text())

        everybody = [[identity(name), None] for name in ("client-ec", "client-rsa", "client-ed25519")]
        self.server(users=everybody, more=tls("server-ec"))
        client("client-ec")
        self.place("billing.ca", (CERTIFICATES / "ca.pem").read_text())
        environment = f"NATS_CA={ETC}/billing.ca\nNATS_CERT={ETC}/billing.pem\nNATS_KEY={ETC}/billing.key\n"
        self.agent(environment, identity("client-ec"), scheme="tls")
        self.watch({}, ["/etc/client-ed25519.pem", "/etc/client-ed25519-key.pem"])
        client("client-rsa")
        self.through("a certificate and its key replaced, by a reload", self.reload, identity("client-rsa"))
        self.place("billing.ca", (CERTIFICATES / "other-ca.pem").read_text())
        client("client-ec")
        self.through("a reload with a CA that did not sign the server's changes nothing", self.reload, identity("client-rsa"))
        self.place("billing.ca", "".join((CERTIFICATES / f"{name}.pem").read_text() for name in ("other-ca", "ca")))
        self.through("the CAs replaced, by SIGHUP", self.hang_up, identity("client-ec"))
        client("client-rsa")
        self.through("the server's certificate replaced, and ours, by a reload", lambda: (
            self.server(users=everybody, more=tls("server-rsa")), self.reload()), identity("client-rsa"))  # fmt: skip
        client("client-ec")
        self.through("a certificate replaced, no signal: the server withdraws the old one", lambda: self.server(
            users=[user for user in everybody if user[0] != identity("client-rsa")], more=tls("server-rsa"),
        ), identity("client-ec"))  # fmt: skip

    # What they are made of.

    def configure(self, text):
        self.story.root_path("/etc/rotation.conf").write_text(
            'listen: "127.0.0.1:4224"\nhttp: "127.0.0.1:8224"\njetstream { store_dir: "/var/lib/rotation" }\n' + text
        )

    def server(self, users=(), nkeys=(), more=""):
        """Starts the server with these users, or tells the one that runs of them."""
        lines = [f"{{ user: {json.dumps(name)}" + (f", password: {json.dumps(password)} }}" if password else " }")
                 for name, password in users]  # fmt: skip
        lines += [f"{{ nkey: {key.public()} }}" for key in nkeys]
        self.configure("authorization { users: [ " + ", ".join(lines) + " ] }\n" + more)
        # What is new of TLS for the first time takes a restart.
        is_running = self.run("systemctl", "is-active", "rotation.service", check=False)[1] == "active"
        is_other = is_running and bool(more) != self.had_more
        self.had_more = bool(more)
        self.run("systemctl", "restart" if not is_running or is_other else "reload", "rotation.service")

    had_more = False

    def place(self, name, text, owner="root:aegis-agents", mode="640"):
        """A file that takes the place of the old one at once."""
        path = f"{ETC}/{name}"
        new = self.story.root_path(f"{path}.new")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)
        self.run("sh", "-ec", f"chown {owner} {path}.new; chmod {mode} {path}.new; mv {path}.new {path}")

    def context(self, **fields):
        self.place("nats/context/rotation.json", json.dumps({"url": "nats://127.0.0.1:4224", **fields}))

    def environment(self, text, scheme="nats"):
        self.story.write_env("billing", ENVIRONMENT.format(scheme=scheme) + text)

    def agent(self, environment, identity, scheme="nats"):
        self.environment(environment, scheme)
        self.run("systemctl", "stop", "watcher.service", check=False)
        self.run("systemctl", "restart", UNIT)
        self.story.wait(f"registered as {identity}", 10, lambda: self.identity() == {identity})

    def reload(self):
        self.run("systemctl", "reload", UNIT)

    def hang_up(self):
        self.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", UNIT)

    def identity(self, service="billing"):
        """As whom the server knows the agent."""
        connections = (self.ask("connz?auth=1") or {}).get("connections") or []
        ours = [one for one in connections if one.get("name", "").startswith(f"aegis-agent {service}/")]
        return {one.get("authorized_user") for one in ours}

    def ask(self, path):
        """What the server says of itself; nothing where it does not answer."""
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8224/{path}', timeout=5).read().decode())"
        done, text = self.run("python3", "-c", code, check=False)
        return None if done else json.loads(text)

    def watch(self, connect, certificate=None):
        host = self.run("hostname", "-s")[1]
        arguments = json.dumps([connect, "service_registry", f"service-instances__billing__{host}", certificate])
        self.run("systemctl", "reset-failed", "watcher.service", check=False)
        self.run("sh", "-c", "rm -f /run/watcher.log")
        self.run("systemd-run", "--quiet", "--collect", "--unit=watcher", "--property=StandardOutput=file:/run/watcher.log",
                 "/usr/bin/python3", "/usr/local/bin/watcher", arguments)  # fmt: skip
        self.wait_for_revisions(2)

    def lines(self):
        code, text = self.run("cat", "/run/watcher.log", check=False)
        return [] if code else [line.split() for line in text.splitlines()]

    def wait_for_revisions(self, count):
        wanted = len(self.lines()) + count
        deadline = time.monotonic() + 15
        while len(self.lines()) < wanted:
            if time.monotonic() > deadline:
                state = self.run("systemctl", "status", "--no-pager", "watcher.service", check=False)[1]
                self.expect(f"{count} heartbeats within 15 s; the watcher: {state}", False)
            time.sleep(0.1)

    def stamps(self, at, puts=True):
        """Times and kinds from one line before this one."""
        lines = self.lines()[max(at - 1, 0) :]
        if puts:
            self.expect("the entry is never away", all(line[2] == "put" for line in lines))
        moment = lambda text: datetime.datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp()  # noqa: E731
        return [(moment(line[1]), line[2]) for line in lines if line[0] != "absent"]

    def through(self, what, action, identity):
        """Nothing of the entry is missed from before the action until after it."""
        at = len(self.lines())
        action()
        # Whatever it is that must not happen has had the time to.
        self.wait_for_revisions(2)
        self.story.wait(f"{what}: {identity}", 15, lambda: self.identity() == {identity})
        self.wait_for_revisions(2)
        stamps = [stamp for stamp, _ in self.stamps(at)]
        gaps = [after - before for before, after in zip(stamps, stamps[1:])]
        seen = " ".join(f"{gap:.2f}" for gap in gaps)
        self.expect(f"at most {max(gaps):.2f} s between revisions ({seen})", max(gaps) <= LIMIT)


# Nkeys and JWTs (nats-io/jwt, version 2), with Ed25519 of RFC 8032 in plain
# numbers: slow, never for a secret that is one, and without a library.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(a, b):
    (x1, y1), (x2, y2) = a, b
    product = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, P - 2, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product, P - 2, P) % P,
    )


def times(point, number):
    sum_ = (0, 1)
    while number:
        if number & 1:
            sum_ = add(sum_, point)
        point, number = add(point, point), number >> 1
    return sum_


BASE = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)


def packed(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


class Key:
    """The same one each time: no test needs surprise here."""

    KINDS = {"operator": 14 << 3, "account": 0, "user": 20 << 3}

    def __init__(self, kind, number):
        self.kind = self.KINDS[kind]
        self.raw = bytes([number] * 32)
        hashed = hashlib.sha512(self.raw).digest()
        self.scalar = int.from_bytes(hashed[:32], "little") & (1 << 254) - 8 | 1 << 254
        self.prefix = hashed[32:]
        self.point = packed(times(BASE, self.scalar))

    def sign(self, message):
        nonce = int.from_bytes(hashlib.sha512(self.prefix + message).digest(), "little") % ORDER
        commitment = packed(times(BASE, nonce))
        challenge = int.from_bytes(hashlib.sha512(commitment + self.point + message).digest(), "little")
        return commitment + ((nonce + challenge * self.scalar) % ORDER).to_bytes(32, "little")

    def public(self):
        return checked(bytes([self.kind]) + self.point)

    def seed(self):
        return checked(bytes([18 << 3 | self.kind >> 5, (self.kind & 31) << 3]) + self.raw)


def checked(data):
    """In base32, with a CRC-16 (XMODEM) at its end."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")


def jwt(issuer, name, subject, expires, nats):
    encode = lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=")  # noqa: E731
    claims = {"jti": "tests", "iat": 1_600_000_000, "iss": issuer.public(), "name": name, "sub": subject, "nats": nats}
    if expires:
        claims["exp"] = expires
    body = encode(b'{"typ":"JWT","alg":"ed25519-nkey"}') + "." + encode(json.dumps(claims).encode())
    return f"{body}.{encode(issuer.sign(body.encode()))}"


def operator_jwt(key):
    return jwt(key, "tests", key.public(), None, {"type": "operator", "version": 2})


def account_jwt(operator, name, key, storage):
    limits = {
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1,
        "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
    }  # fmt: skip
    return jwt(operator, name, key.public(), None, {"limits": limits, "type": "account", "version": 2})


def user_jwt(account, name, key, expires, **more):
    claims = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2, **more}
    return jwt(account, name, key.public(), expires, claims)
