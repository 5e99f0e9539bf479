#!/usr/bin/env python3
"""Says what the program is made of: the crates that are linked in, from the
lock file, with their licences.

    python3 packaging/parts.py copyright [--check]   packaging/copyright
    python3 packaging/parts.py sbom TARGET [FILE]    a CycloneDX document

Both come out the same wherever and whenever they are made. Needs cargo; the
sources of the crates are where cargo keeps them. Standard library only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPYRIGHT = ROOT / "packaging/copyright"
# What the target brings along beside the crates.
BESIDE = ROOT / "packaging/licences/toolchain"
TARGETS = ("x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl")
NAME = "aegis-agent"


class Wrong(Exception):
    """Something that a person has to mend."""


def cargo(*arguments):
    done = subprocess.run(["cargo", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Wrong(f"cargo {' '.join(arguments)} failed, see above")
    return done.stdout.decode()


def linked(target):
    """The packages that end up in the binary, by cargo's id; ours first. Not
    those of tests, of build scripts and of macros."""
    tree = cargo("tree", "--locked", "-e", "normal,no-proc-macro", "--prefix", "none", "--target", target, "-f", "{p}")
    wanted = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))
    found = [package for package in metadata["packages"] if (package["name"], f"v{package['version']}") in wanted]
    if len(found) != len(wanted) or not found:
        raise Wrong(f"cargo tree names {len(wanted)} packages, cargo metadata {len(found)} of them")
    found.sort(key=lambda package: (package["name"] != NAME, package["name"], package["version"]))
    edges = {node["id"]: node["dependencies"] for node in metadata["resolve"]["nodes"]}
    return found, edges


def licence_files(package):
    directory = Path(package["manifest_path"]).parent
    names = re.compile(r"(LICEN[CS]E|COPYING|COPYRIGHT|UNLICENSE|NOTICE)([-._].*)?", re.IGNORECASE)
    found = [path for path in directory.rglob("*") if path.is_file() and names.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


def holders(package):
    """Who says "Copyright" in the licence files; else its authors."""
    found = []
    for path in licence_files(package):
        for line in path.read_text(errors="replace").splitlines():
            line = line.strip(" \t/*#")
            if re.match(r"(Copyright|©|\(c\))", line, re.IGNORECASE) and re.search(r"[12]\d\d\d", line):
                line = re.sub(r"^(Copyright|\(c\)|©|:|\s)+", "", line, flags=re.IGNORECASE)
                line = re.sub(r"\s*All rights reserved\.?$", "", line, flags=re.IGNORECASE)
                line = line.rstrip(".")
                if line not in found and "yyyy" not in line:
                    found.append(line)
    return found or package["authors"] or [f"the developers of {package['name']}"]


def choose(package):
    """The licence that we take the crate under: Apache 2.0, as our own, where
    it offers that; else what it has."""
    said = package["license"] or ""
    options = [option.strip() for option in said.split(" OR ")]
    return "Apache-2.0" if "Apache-2.0" in options else said


def without_apache(text):
    """The one licence that is in every package anyway is not said again."""
    whole = r"[ \t]*Apache License\s+Version 2\.0, January 2004.*?END OF TERMS AND CONDITIONS"
    return re.sub(whole, "[the Apache License, Version 2.0]", text, flags=re.DOTALL)


def indented(text):
    """As in a Debian control file: a dot stands for an empty line."""
    lines = (line.rstrip() for line in text.expandtabs().strip("\n").splitlines())
    return "\n".join(f" {line}" if line else " ." for line in lines)


def copyright():
    packages = {}
    for target in TARGETS:
        for package in linked(target)[0]:
            packages[package["name"], package["version"]] = package
    stanzas = [textwrap.dedent("""\
        Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
        Upstream-Name: aegis-agent
        Comment: Made by packaging/parts.py from Cargo.lock; do not edit. All that is
         linked into the program stands here. Paths of crates are those that
         `cargo vendor --versioned-dirs` makes.""")]  # fmt: skip
    for package in packages.values():
        if package["name"] == NAME:
            stanzas.append("Files: *\nCopyright: The aegis-agent authors\nLicense: Apache-2.0")
            continue
        chosen = choose(package)
        if not chosen:
            raise Wrong(f"{package['name']} {package['version']} names no licence")
        text = f"Files: vendor/{package['name']}-{package['version']}/*\n"
        text += "Copyright: " + "\n           ".join(holders(package)) + "\n"
        directory = Path(package["manifest_path"]).parent
        files = licence_files(package)
        if chosen == "Apache-2.0":
            # The licence wants the text of a NOTICE to be handed on.
            files = [path for path in files if path.name.upper().startswith("NOTICE")]
        elif not files:
            raise Wrong(f"{package['name']} {package['version']} has no licence file")
        text += f"License: {chosen}".replace(" OR ", " or ").replace(" AND ", " and ")
        for path in files:
            name = path.relative_to(directory).as_posix()
            text += f"\n {name}:\n .\n" + indented(without_apache(path.read_text(errors="replace")))
            text += "\n ." if path != files[-1] else ""
        stanzas.append(text)
    stanzas.append(BESIDE.read_text().strip("\n"))
    stanzas.append(textwrap.dedent("""\
        License: Apache-2.0
         Licensed under the Apache License, Version 2.0: you may not use these files
         except in compliance with it. Unless required by applicable law or agreed to
         in writing, they are distributed "AS IS", without warranties or conditions of
         any kind, either express or implied.
         .
         On Debian systems the whole text is in /usr/share/common-licenses/Apache-2.0;
         elsewhere in the file LICENSE that comes with this one."""))  # fmt: skip
    return "\n\n".join(stanzas) + "\n"


def checksums():
    """The SHA-256 of each crate, as the lock file has it."""
    lock = (ROOT / "Cargo.lock").read_text()
    pattern = r'name = "([^"]+)"\nversion = "([^"]+)"\n(?:source = "[^"]+"\n)?checksum = "([0-9a-f]+)"'
    return {(name, version): checksum for name, version, checksum in re.findall(pattern, lock)}


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def sbom(target, epoch):
    """A CycloneDX document of what is linked in."""
    packages, edges = linked(target)
    sums = checksums()
    own, crates = packages[0], packages[1:]
    ids = {package["id"]: purl(package) for package in packages}

    def component(package):
        licences = [{"expression": package["license"]}] if package["license"] else []
        one = {
            "type": "application" if package is own else "library", "bom-ref": purl(package),
            "name": package["name"], "version": package["version"], "purl": purl(package), "licenses": licences,
        }  # fmt: skip
        if package is not own:
            one["hashes"] = [{"alg": "SHA-256", "content": sums[package["name"], package["version"]]}]
        return one

    compiler = subprocess.check_output(["rustc", "--version"]).decode().split()[1]
    library = {
        "type": "library", "bom-ref": f"rust-std@{compiler}", "name": "rust-std", "version": compiler,
        "description": f"Rust's standard library for {target}, with the C library musl and LLVM's libunwind",
        "licenses": [{"expression": "(MIT OR Apache-2.0) AND MIT AND (Apache-2.0 WITH LLVM-exception)"}],
    }  # fmt: skip
    depends = [
        {"ref": purl(package), "dependsOn": sorted(ids[other] for other in edges[package["id"]] if other in ids)}
        for package in packages
    ]
    depends[0]["dependsOn"].append(library["bom-ref"])
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {
            "timestamp": timestamp(epoch), "component": component(own),
            "properties": [{"name": "cargo:target", "value": target}],
        },
        "components": [component(package) for package in crates] + [library],
        "dependencies": depends + [{"ref": library["bom-ref"], "dependsOn": []}],
    }  # fmt: skip
    # The same contents have the same number.
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))
    return json.dumps({**document, "serialNumber": f"urn:uuid:{number}"}, indent=1) + "\n"


def timestamp(epoch):
    import datetime

    return datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("copyright", help="write packaging/copyright")
    made.add_argument("--check", action="store_true", help="only say whether it is what it should be")
    bill = commands.add_parser("sbom", help="print a CycloneDX document")
    bill.add_argument("target", choices=TARGETS)
    options = parser.parse_args()
    try:
        if options.command == "sbom":
            sys.stdout.write(sbom(options.target, int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))
        elif options.check:
            if COPYRIGHT.read_text() != copyright():
                raise Wrong("packaging/copyright is out of date: python3 packaging/parts.py copyright")
            print("packaging/copyright is that of Cargo.lock")
        else:
            COPYRIGHT.write_text(copyright())
    except Wrong as problem:
        print(f"parts.py: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
