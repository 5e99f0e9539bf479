#!/usr/bin/env python3
"""Types into real shells and looks at what they complete.

    python3 tests/completions.py

bash, zsh and fish run on a terminal of their own, in a directory whose files have
names that must not be expanded. A shell that is not there is SKIPPED aloud; with
AEGIS_SHELLS=1 in the environment that is a failure. Standard library only; takes
some seconds.
"""

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "packaging/completions"
PATIENCE = 20
VERBS = "run init check cleanup list watch help version".split()

# What is typed, and every candidate that the shell has for it.
CASES = [
    ("", VERBS),
    ("wa", ["watch"]),
    ("cl", ["cleanup"]),
    ("-s nats://a:4222 cl", ["cleanup"]),
    ("--buc", ["--bucket"]),
    ("list --buc", ["--bucket"]),
    ("run --health-", ["--health-exec", "--health-tcp", "--health-timeout", "--health-failures"]),
    ("--creds run --form", []),
    ("--creds run check --form", ["--format"]),
    ("help cl", ["cleanup"]),
    ("check --format ", ["text", "json", "nagios", "prometheus"]),
    ("check --format n", ["nagios"]),
    ("check --format=n", ["nagios"]),
    ("-v check --bucket b --format pro", ["prometheus"]),
    ("list --format ", []),
    ("list --status ", ["ACTIVE", "STANDBY", "UNHEALTHY", "SHUTDOWN"]),
    ("list --status U", ["UNHEALTHY"]),
    ("cleanup --only ",
     ["heartbeat-too-old", "status-unhealthy", "status-shutdown", "no-ttl", "expired"]),
    ("cleanup --only expired --only n", ["no-ttl"]),
    ("init --storage ", ["file", "memory"]),
    ("init --replicas ", ["1", "2", "3", "4", "5"]),
    ("init --history ", ["1"]),
    ("init --max-age ", ["none"]),
    ("init --marker-ttl ", ["none"]),
    # What is free is not completed with files.
    ("run --service ", []),
    ("list --bucket ", []),
    # Contexts of the nats CLI, whatever they are called.
    ("--context ", ["prod", "test.eu", "a*b"]),
    ("list --context pr", ["prod"]),
    ("list --context=te", ["test.eu"]),
    # Nothing that was typed is expanded: in this directory * is the word check.
    ("list * --form", []),
    ("list * --wid", ["--wide"]),
    ("list ? --nam", ["--names"]),
    ("list '$(touch ran)' --nam", ["--names"]),
    ("list --meta a=* --nam", ["--names"]),
    ("list --meta check=run --nam", ["--names"]),
    ("-s nats://run:check list --bucket b --nam", ["--names"]),
    ("list orders-api --bucket b --nam", ["--names"]),
]  # fmt: skip
FILES = [
    *[(option, "") for option in (
        "--creds", "--nkey", "--password-file", "--token-file", "--tlsca", "--tlscert",
        "--tlskey", "--env-file",
    )],
    *[(option, verb) for option, verb in (
        ("--metrics-file", "run"), ("--drain-file", "run"), ("--health-exec", "run"),
        ("--output", "check"), ("--exec", "watch"), ("--creds", "list"),
    )],
]  # fmt: skip
for _option, _verb in FILES:
    CASES.append((f"{_verb} {_option} ./files/ord".lstrip(), ["./files/orders.creds"]))
CASES.append(("--creds=./files/ord", ["./files/orders.creds"]))
CASES.append(("list --creds ./files/two", ["./files/two words.creds"]))


class Broken(Exception):
    """A shell did not do as promised."""


class Terminal:
    """A shell on a terminal; what it writes is thrown away, but for the end."""

    def __init__(self, command, environment, directory):
        self.seen = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            os.execvpe(command[0], command, environment)

    def type(self, text):
        os.write(self.terminal, text.encode())

    def wait_for(self, look, what):
        """Reads, so that the shell can write, until `look` finds something."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if select.select([self.terminal], [], [], 0.02)[0]:
                try:
                    self.seen = (self.seen + os.read(self.terminal, 65536))[-4000:]
                except OSError:
                    raise Broken(f"{what}: the shell ended: {self.seen!r}") from None
            found = look()
            if found is not None:
                return found
        raise Broken(f"{what}: not within {PATIENCE} s; the terminal: {self.seen!r}")

    def end(self):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


class Shell:
    """What bash and zsh share: each tells its candidates in a file."""

    def __init__(self, place):
        self.place = place
        self.answer = place / "answer"
        self.environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(place), "TERM": "dumb", "LC_ALL": "C.UTF-8",
            "XDG_CONFIG_HOME": str(place / "config"), "ANSWER": str(self.answer),
        }  # fmt: skip
        command = self.furnish()
        self.terminal = Terminal(command, self.environment, place / "here")
        ready = place / "ready"
        self.terminal.wait_for(lambda: ready.exists() or None, "start")

    def candidates(self, typed):
        self.answer.unlink(missing_ok=True)
        # Ctrl-U: an empty line.
        self.terminal.type("\x15" + "aegis-agent " + typed + self.keys)
        self.terminal.wait_for(lambda: self.answer.exists() or None, repr(typed))
        line = self.answer.read_text().removeprefix("aegis-agent ").rstrip("\n")
        return self.words(line, typed)

    def end(self):
        self.terminal.end()

    def words(self, line, typed):
        """All candidates are inserted in the place of the last word, quoted."""
        kept = typed[: typed.rindex(" ") + 1] if " " in typed else ""
        if "=" in typed[len(kept) :] and typed[len(kept) :].startswith("--"):
            kept = typed[: typed.index("=", len(kept)) + 1]
        if not line.startswith(kept):
            raise Broken(f"{typed!r} became {line!r}")
        if line.rstrip() == typed.rstrip():
            return []
        # zsh puts = after an option that takes a value, until something else is typed.
        return [word.removesuffix("=") for word in shlex.split(line[len(kept) :])]


class Bash(Shell):
    name = "bash"
    # insert-completions, and the line into the file.
    keys = "\x1b*\x18a"

    def furnish(self):
        startup = self.place / "bashrc"
        startup.write_text(
            f"source '{SCRIPTS}/aegis-agent.bash'\n"
            "bind 'set completion-query-items 0'\nbind 'set page-completions off'\n"
            "tell() { printf '%s\\n' \"$READLINE_LINE\" >\"$ANSWER.new\"; mv \"$ANSWER.new\" \"$ANSWER\"; }\n"
            "bind -x '\"\\C-xa\": tell'\nPS1='$ '\n"
            f"touch '{self.place}/ready'\n"
        )
        return ["bash", "--rcfile", str(startup), "-i"]


class Zsh(Shell):
    name = "zsh"
    keys = "\x18m\x18a"

    def furnish(self):
        functions = self.place / "functions"
        functions.mkdir()
        shutil.copy(SCRIPTS / "_aegis-agent", functions)
        (self.place / ".zshrc").write_text(
            f"fpath=('{functions}' $fpath)\nautoload -Uz compinit && compinit -u -D\n"
            "zle -C all complete-word _generic\n"
            "zstyle ':completion:all:*' completer _all_matches _complete\n"
            "zstyle ':completion:all:*' insert true\n"
            "bindkey -e\nbindkey '^Xm' all\n"
            "tell() { print -r -- \"$BUFFER\" >$ANSWER.new; mv $ANSWER.new $ANSWER }\n"
            "zle -N tell\nbindkey '^Xa' tell\nPS1='$ '\n"
            f"precmd() {{ touch '{self.place}/ready' }}\n"
        )
        self.environment["ZDOTDIR"] = str(self.place)
        return ["zsh", "-i"]


class Fish:
    """fish says itself what it would complete (`complete -C`)."""

    name = "fish"

    def __init__(self, place):
        self.place = place
        self.environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(place), "TERM": "dumb", "LC_ALL": "C.UTF-8",
            "XDG_CONFIG_HOME": str(place / "config"), "XDG_DATA_HOME": str(place / "data"),
        }  # fmt: skip

    def candidates(self, typed):
        done = subprocess.run(
            ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]",
             str(SCRIPTS / "aegis-agent.fish"), f"aegis-agent {typed}"],
            cwd=self.place / "here", env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE,
        )  # fmt: skip
        if done.stderr or done.returncode:
            raise Broken(f"{typed!r}: {done.returncode} {done.stderr.decode()}")
        words = [line.split("\t")[0] for line in done.stdout.decode().splitlines()]
        last = typed.rpartition(" ")[2]
        if last.startswith("--") and "=" in last:
            prefix = last[: last.index("=") + 1]
            words = [word.removeprefix(prefix) for word in words]
        return words

    def end(self):
        pass


def scene(place):
    """A directory with files whose names are traps, and contexts."""
    here = place / "here"
    (here / "files").mkdir(parents=True)
    for name in ("check", "files/orders.creds", "files/two words.creds", "b"):
        (here / name).write_text("")
    contexts = place / "config/nats/context"
    contexts.mkdir(parents=True)
    for name in ("prod", "test.eu", "a*b"):
        (contexts / f"{name}.json").write_text("{}")
    (contexts / "prod.json.bak").write_text("")


def main():
    failed = passed = 0
    for kind in (Bash, Zsh, Fish):
        if not shutil.which(kind.name):
            print(f"SKIPPED: no {kind.name} here: its completions are not tried")
            failed += os.environ.get("AEGIS_SHELLS") == "1"
            continue
        with tempfile.TemporaryDirectory(prefix="aegis-completions-") as place:
            place = Path(place)
            scene(place)
            shell = kind(place)
            try:
                for typed, wanted in CASES:
                    found = shell.candidates(typed)
                    if sorted(found) == sorted(wanted):
                        passed += 1
                    else:
                        failed += 1
                        print(f"FAILED: {kind.name}: {typed!r}: {found}, and not {wanted}")
            except Broken as problem:
                failed += 1
                print(f"FAILED: {kind.name}: {problem}")
            finally:
                shell.end()
            if (place / "here/ran").exists():
                failed += 1
                print(f"FAILED: {kind.name} ran what was typed")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
