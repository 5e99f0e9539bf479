#!/usr/bin/env python3
"""Makes the packages out of a binary that is built: .deb, .rpm and .tar.gz.

    python3 packaging/build.py --binary FILE --architecture x86_64 --to DIRECTORY [deb|rpm|tar...]

What goes where is in packaging/files. The same inputs give the same bytes: times
are that of the newest entry in packaging/debian/changelog, or SOURCE_DATE_EPOCH.
AEGIS_MAINTAINER="Name <address>" says who answers for the packages. The .rpm
needs rpmbuild (Debian: rpm); the others nothing but Python 3.
"""

import argparse
import email.utils
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "packaging"
NAME = "aegis-agent"
KINDS = ("deb", "rpm", "tar")
# What Debian calls them.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")

SYNOPSIS = "keeps entries of services in a NATS registry alive"
DESCRIPTION = """\
One small program for hosts with NATS. As an agent beside a service it
registers the service in a key-value bucket of NATS JetStream, keeps its entry
alive and takes it out when the service stops; as a tool it prepares, checks,
lists and cleans the registry.

Nothing is enabled or started by installing it."""


class Wrong(Exception):
    """Something that a person has to mend."""


class Entry:
    """A file of the package: its path on the host, contents and mode."""

    def __init__(self, path, data, mode=0o644):
        self.path = path
        self.data = data
        self.mode = mode


class Package:
    """What all three kinds have in common."""

    def __init__(self, binary, architecture):
        self.architecture = architecture
        self.binary = Path(binary)
        changelog = (HERE / "debian/changelog").read_text()
        first = re.match(rf"{NAME} \(([^-)]+)-([^)]+)\)", changelog)
        end = re.search(r"^ -- (.+>)  (.+)$", changelog, re.MULTILINE)
        if not first or not end:
            raise Wrong("packaging/debian/changelog does not begin with a version and end with a date")
        self.version, self.release = first.groups()
        manifest = re.search(r'^version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
        if manifest.group(1) != self.version:
            raise Wrong(f"packaging/debian/changelog is for {self.version}, Cargo.toml for {manifest.group(1)}")
        self.maintainer = os.environ.get("AEGIS_MAINTAINER") or end.group(1)
        dated = email.utils.parsedate_to_datetime(end.group(2))
        self.epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or dated.timestamp())
        self.changes = changelog

    def entries(self, kind):
        found = []
        for line in (HERE / "files").read_text().splitlines():
            words = line.split()
            if not words or line.startswith("#") or words[2:] not in ([], [kind]):
                continue
            source, path = words[:2]
            try:
                data = (self.binary if source == "BINARY" else ROOT / source).read_bytes()
            except OSError as error:
                raise Wrong(f"{source}: {error.strerror}") from None
            if "/man/" in path or path.endswith("/changelog"):
                path, data = f"{path}.gz", pressed(data)
            found.append(Entry(path, data, 0o755 if source == "BINARY" else 0o644))
        return found

    def tar(self, entries, top=""):
        """A tar archive with its directories, in order, owned by root."""
        files = {top + entry.path: entry for entry in entries}
        names = set(files)
        for path in files:
            names.update(str(parent) for parent in Path(path).parents)
        names.discard(".")
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name in ["."] * (not top) + sorted(names):
                entry = files.get(name)
                member = tarfile.TarInfo(name if top or name == "." else f"./{name}")
                member.mtime = self.epoch
                member.uname = member.gname = "root"
                member.mode = entry.mode if entry else 0o755
                member.type = tarfile.REGTYPE if entry else tarfile.DIRTYPE
                member.size = len(entry.data) if entry else 0
                archive.addfile(member, io.BytesIO(entry.data) if entry else None)
        return out.getvalue()

    def deb(self, to):
        entries = self.entries("deb")
        changes = re.sub(r"^ -- .+>  ", lambda _: f" -- {self.maintainer}  ", self.changes, count=1, flags=re.MULTILINE)
        entries.append(Entry(f"usr/share/doc/{NAME}/changelog.Debian.gz", pressed(changes.encode())))
        kib = sum((len(entry.data) + 1023) // 1024 for entry in entries) + 50
        text = "\n".join(f" {line}" if line else " ." for line in DESCRIPTION.splitlines())
        control = (
            f"Package: {NAME}\nVersion: {self.version}-{self.release}\nArchitecture: {ARCHITECTURES[self.architecture]}\n"
            f"Maintainer: {self.maintainer}\nInstalled-Size: {kib}\n"
            "Depends: systemd | systemd-standalone-sysusers | systemd-sysusers\n"
            "Recommends: ca-certificates\nSection: net\nPriority: optional\n"
            f"Description: {SYNOPSIS}\n{text}\n"
        )
        sums = "".join(f"{hashlib.md5(entry.data).hexdigest()}  {entry.path}\n" for entry in entries if not entry.path.startswith("etc/"))
        settings = "".join(f"/{entry.path}\n" for entry in entries if entry.path.startswith("etc/"))
        inside = [Entry("control", control.encode()), Entry("md5sums", sums.encode()), Entry("conffiles", settings.encode())]
        inside += [Entry(name, (HERE / "debian" / name).read_bytes(), 0o755) for name in SCRIPTS]
        members = [
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", lzma.compress(self.tar(inside), preset=6)),
            ("data.tar.xz", lzma.compress(self.tar(entries), preset=6)),
        ]
        path = to / f"{NAME}_{self.version}-{self.release}_{ARCHITECTURES[self.architecture]}.deb"
        path.write_bytes(archived(members, self.epoch))
        return path

    def tar_gz(self, to):
        top = f"{NAME}-{self.version}-{self.architecture}-linux"
        path = to / f"{top}.tar.gz"
        path.write_bytes(pressed(self.tar(self.entries("tar"), f"{top}/")))
        return path

    def rpm(self, to):
        if not shutil.which("rpmbuild"):
            raise Wrong("rpmbuild is missing (Debian: rpm)")
        with tempfile.TemporaryDirectory(prefix="aegis-rpm-") as scratch:
            scratch = Path(scratch)
            lines = []
            for entry in self.entries("rpm"):
                path = scratch / "tree" / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(entry.data)
                path.chmod(entry.mode)
                lines.append(rpm_line(entry.path))
            lines += [f"%dir /{path}" for path in own_directories(self.entries("rpm"))]
            (scratch / "files").write_text("\n".join(sorted(lines)) + "\n")
            spec = (HERE / "rpm/aegis-agent.spec").read_text()
            spec += "\n%changelog\n" + rpm_changes(self.changes, self.maintainer)
            (scratch / "spec").write_text(spec)
            defines = {
                "_topdir": scratch / "top", "_rpmdir": scratch / "out", "tree": scratch / "tree", "listed": scratch / "files",
                "wanted_version": self.version, "wanted_release": self.release,
                "synopsis": SYNOPSIS[0].upper() + SYNOPSIS[1:], "packager": self.maintainer, "described": scratch / "text", "_buildhost": "aegis-agent",
                "use_source_date_epoch_as_buildtime": "1", "clamp_mtime_to_source_date_epoch": "1",
                "source_date_epoch_from_changelog": "0", "_binary_payload": "w6.xzdio", "debug_package": "%{nil}",
                "__strip": "/bin/true", "_build_id_links": "none",
            }  # fmt: skip
            words = [word for name, value in defines.items() for word in ("--define", f"{name} {value}")]
            (scratch / "text").write_text(DESCRIPTION + "\n")
            done = subprocess.run(
                ["rpmbuild", "-bb", "--quiet", f"--target={self.architecture}-linux", *words, str(scratch / "spec")],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, "SOURCE_DATE_EPOCH": str(self.epoch), "LC_ALL": "C"},
            )  # fmt: skip
            built = list((scratch / "out").rglob("*.rpm"))
            if done.returncode or len(built) != 1:
                raise Wrong(f"rpmbuild: {done.stdout.decode(errors='replace')}")
            path = to / built[0].name
            shutil.copyfile(built[0], path)
            return path


def pressed(data):
    return gzip.compress(data, 9, mtime=0)


def archived(members, epoch):
    """An `ar` archive, as a .deb is one."""
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def rpm_line(path):
    if path.startswith("etc/"):
        return f"%config(noreplace) /{path}"
    if path.startswith("usr/share/licenses/"):
        return f"%license /{path}"
    return f"%doc /{path}" if "/doc/" in path or "/man/" in path else f"/{path}"


def own_directories(entries):
    """Those that are nobody else's: with our name in them."""
    found = set()
    for entry in entries:
        found.update(str(parent) for parent in Path(entry.path).parents if NAME in str(parent))
    return sorted(found)


def rpm_changes(changes, maintainer):
    text = ""
    for version, body, dated in re.findall(rf"^{NAME} \(([^)]+)\).*?\n(.*?)^ -- .+>  (.+)$", changes, re.MULTILINE | re.DOTALL):
        day = email.utils.parsedate_to_datetime(dated).strftime("%a %b %d %Y")
        text += f"* {day} {maintainer} - {version}\n"
        text += re.sub(r"^  \* ", "- ", body.strip("\n"), flags=re.MULTILINE) + "\n\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the program, built")
    parser.add_argument("--architecture", required=True, choices=ARCHITECTURES)
    parser.add_argument("--to", required=True, type=Path, help="directory for the packages")
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all where none is named")
    options = parser.parse_args()
    try:
        package = Package(options.binary, options.architecture)
        options.to.mkdir(parents=True, exist_ok=True)
        makers = {"deb": package.deb, "rpm": package.rpm, "tar": package.tar_gz}
        for kind in options.kinds or KINDS:
            if kind not in makers:
                raise Wrong(f"{kind}: one of {', '.join(KINDS)}")
            print(makers[kind](options.to))
    except Wrong as problem:
        print(f"build.py: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
