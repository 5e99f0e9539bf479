#!/usr/bin/env python3
"""Tries what .ci/release made, each part on a real nats-server.

    python3 tests/packages.py [DIRECTORY]

The checksums, and their signature by a key of the test's own; the list of parts;
the .tar.gz as the root of a container
(packaging/container/Containerfile, by hand: chroot and a PID name space); and the
binary for aarch64 under qemu-user. What cannot be tried here says SKIPPED. The
.deb and the .rpm on a live systemd are tests/live_systemd.py's subject.
Standard library only.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import nats_server  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PASSED = 0


class Broken(Exception):
    """Something was not as promised."""


def expect(what, seen):
    global PASSED
    if not seen:
        raise Broken(f"not true: {what}")
    PASSED += 1
    print(f"    {what}", flush=True)


def wait(what, within, look):
    deadline = time.monotonic() + within
    while not look():
        if time.monotonic() > deadline:
            raise Broken(f"not seen within {within} s: {what}")
        time.sleep(0.05)
    expect(what, True)


@contextlib.contextmanager
def server(directory):
    """A server with JetStream on a free port; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [nats_server.find(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "store")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise Broken("nats-server does not start")
            time.sleep(0.05)
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def started(command, log):
    """A process whose group ends with the block."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def checksums(made):
    names = {line.split("  ")[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    done = subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=made)
    packages = {path.name for path in made.iterdir() if not path.name.startswith("SHA256SUMS")}
    expect(f"the checksums are those of all {len(names)} files", done.returncode == 0 and names == packages)


def signed(made, directory):
    """.ci/release once more, with a key that is made for this."""
    target = f"{os.uname().machine}-unknown-linux-musl"
    if not shutil.which("gpg") or not shutil.which("gpgv"):
        print("SKIPPED: signatures: no gpg here (Debian: gnupg)")
        return
    home, dist = directory / "gnupg", directory / "signed"
    home.mkdir(mode=0o700)
    environment = {**os.environ, "GNUPGHOME": str(home), "AEGIS_DIST": str(dist), "AEGIS_SIGNING_KEY": "release@test.example"}

    def gpg(*arguments):
        return subprocess.run(["gpg", "--batch", "--quiet", *arguments], env=environment, stdout=subprocess.PIPE, check=True).stdout

    try:
        gpg("--passphrase", "", "--quick-generate-key", "Test <release@test.example>", "ed25519", "sign", "never")
        public = directory / "release.gpg"
        public.write_bytes(gpg("--export", "release@test.example"))
        done = subprocess.run([ROOT / ".ci/release", target], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        expect(f".ci/release signs{done.stderr.decode()[-500:] if done.returncode else ''}", done.returncode == 0)
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=environment)

    def is_good(sums):
        command = ["gpgv", "--keyring", str(public), str(dist / "SHA256SUMS.asc"), str(sums)]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    sums = dist / "SHA256SUMS"
    expect("the signature of the checksums is good", is_good(sums))
    changed = directory / "changed"
    changed.write_text(sums.read_text().replace("0", "1", 1))
    expect("and is not for others", not is_good(changed))
    # The key changes nothing of what is signed.
    listed = (made / "SHA256SUMS").read_text().splitlines()
    expect("what is signed is the same bytes", set(sums.read_text().splitlines()) <= set(listed))


def parts(made):
    lock = (ROOT / "Cargo.lock").read_text()
    for path in sorted(made.glob("*.cdx.json")):
        document = json.loads(path.read_text())
        crates = [part for part in document["components"] if part.get("purl", "").startswith("pkg:cargo/")]
        known = set(re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = .*\nchecksum = "([0-9a-f]+)"', lock))
        named = {(part["name"], part["version"], part["hashes"][0]["content"]) for part in crates}
        expect(f"{path.name} has {len(crates)} crates, each with the checksum of the lock file",
               len(crates) > 20 and named <= known)  # fmt: skip
        references = {part["bom-ref"] for part in document["components"]}
        references.add(document["metadata"]["component"]["bom-ref"])
        edges = [other for part in document["dependencies"] for other in part["dependsOn"]]
        expect(f"and {len(edges)} edges between what it names", edges and set(edges) <= references)


def unpacked(made, architecture, directory):
    found = list(made.glob(f"aegis-agent-*-{architecture}-linux.tar.gz"))
    if not found:
        return None
    with tarfile.open(found[0]) as archive:
        name = next(name for name in archive.getnames() if name.endswith("/usr/bin/aegis-agent"))
        binary = directory / f"aegis-agent-{architecture}"
        binary.write_bytes(archive.extractfile(name).read())
    binary.chmod(0o755)
    return binary


def status(pid):
    """Fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def inside(first):
    """The processes in the PID name space of this one, it included."""
    space = os.readlink(f"/proc/{first}/ns/pid")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(path / "ns/pid") == space:
                found.append(status(path.name))
    return found


def container(made, directory):
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ldd"):
        print("SKIPPED: a container's root: it needs root, unshare and ldd")
        return
    binary = unpacked(made, os.uname().machine, directory)
    if not binary:
        print("SKIPPED: a container's root: no .tar.gz for this machine")
        return
    recipe = (ROOT / "packaging/container/Containerfile").read_text()
    words = [line.split() for line in recipe.splitlines() if line and not line.startswith("#")]
    expect("the Containerfile begins with nothing", words[0] == ["FROM", "scratch"])
    user = next(line[1] for line in words if line[0] == "USER")
    program = json.loads(next(line for line in recipe.splitlines() if line.startswith("ENTRYPOINT"))[11:])[0]
    root = directory / "root"
    for line in (line for line in words if line[0] == "COPY"):
        target = root / line[2].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = binary if line[1] == "aegis-agent" else Path("/etc/ssl/certs") / line[1]
        if source.exists():
            shutil.copy2(source, target)
    # What a container's runtime gives: /proc (below) and devices.
    (root / "proc").mkdir()
    (root / "dev").mkdir()
    os.mknod(root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "dev/null").chmod(0o666)
    # What a check of a service needs, which an image of that service has.
    (root / "bin").mkdir()
    for name in ("sh", "sleep", "setsid"):
        shutil.copy2(shutil.which(name), root / "bin" / name)
        for library in re.findall(r"(/\S+) \(0x", subprocess.check_output(["ldd", shutil.which(name)]).decode()):
            (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, root / library.lstrip("/"))
    # Found by /bin/sh's own PATH, and left running each time.
    check = "/bin/sh -c '/bin/setsid /bin/sleep 300 & /bin/sleep 0.1'"
    with server(directory) as url:
        log = directory / "container.log"
        command = [
            "unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc", "chroot", f"--userspec={user}", str(root),
            program, "run", "-s", url, "--service", "sidecar", "--instance", "one", "--interval", "1s", "--health-exec", check,
        ]  # fmt: skip
        with started(command, log) as process:
            listed = lambda: json.loads(  # noqa: E731
                subprocess.run([str(binary), "-s", url, "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
                or '{"instances":[]}'
            )["instances"]
            wait("process 1 of a root with nothing else registers", 10, lambda: len(listed()) == 1)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            first = int(children[0])
            expect("it is process 1 there", status(first)["NSpid"].split()[-1] == "1")
            expect(f"as user {user}", status(first)["Uid"].split()[1] == user.split(":")[0])
            revision = listed()[0]["revision"]
            wait("five heartbeats and checks later it is there", 20, lambda: (listed() or [{"revision": 0}])[0]["revision"] >= revision + 5)
            expect("ACTIVE by its check", listed()[0]["status"] == "ACTIVE")
            names = [fields["Name"] for fields in inside(first)]
            expect(f"what the checks left behind is gone: {names}", len(names) <= 4 and names.count("sleep") <= 2)
            wait("and reaped", 5, lambda: "Z" not in [fields["State"][0] for fields in inside(first)])
            os.kill(first, signal.SIGTERM)
            expect("SIGTERM ends it with 0", process.wait(timeout=10) == 0)
            expect("and takes the entry out", listed() == [])


def aarch64(made, directory):
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    binary = unpacked(made, "aarch64", directory)
    if not qemu or not binary:
        print(f"SKIPPED: aarch64: {'no binary for it' if qemu else 'no qemu-aarch64 (Debian: qemu-user-static)'}")
        return
    call = [qemu, str(binary)]
    version = subprocess.check_output([*call, "--version"]).decode().strip()
    expect(f"aarch64 under qemu-user: {version}", version.startswith("aegis-agent "))
    (directory / "arm").mkdir()
    with server(directory / "arm") as url:
        with started([*call, "run", "-s", url, "--service", "arm", "--instance", "one", "--interval", "1s"], directory / "log") as process:
            listed = lambda: json.loads(  # noqa: E731
                subprocess.run([*call, "-s", url, "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
                or '{"instances":[]}'
            )["instances"]
            wait("it registers", 20, lambda: len(listed()) == 1)
            revision = listed()[0]["revision"]
            wait("and beats", 10, lambda: listed()[0]["revision"] > revision)
            done = subprocess.run([*call, "-s", url, "check", "--probe"], stdout=subprocess.PIPE)
            expect("check --probe is content", done.returncode == 0 and b"ok        ttl-probe" in done.stdout)
            process.send_signal(signal.SIGTERM)
            expect("SIGTERM ends it with 0", process.wait(timeout=10) == 0)
            expect("and takes the entry out", listed() == [])


def main():
    made = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/dist")
    if not (made / "SHA256SUMS").exists():
        print(f"SKIPPED: nothing in {made}: .ci/release makes it")
        return 0
    with tempfile.TemporaryDirectory(prefix="aegis-packages-") as directory:
        directory = Path(directory)
        try:
            checksums(made)
            signed(made, directory)
            parts(made)
            container(made, directory)
            aarch64(made, directory)
        except (Broken, nats_server.NoServer, subprocess.TimeoutExpired) as problem:
            print(f"FAILED: {problem}")
            for log in directory.glob("*log"):
                print(log.read_text(errors="replace")[-2000:])
            return 1
    print(f"{PASSED} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
