#!/usr/bin/env python3
"""Installs the package into a live systemd and watches it work.

    sudo python3 tests/live_systemd.py [--deb FILE] [--rpm FILE] [--debian NAME]

Boots this machine's own root, under an overlay in memory, with systemd-nspawn:
a real systemd, a real nats-server and a real service with its agent. Without
--deb the package is made by packaging/build.py, of a debug build. With --rpm that
package is installed, upgraded and erased there, too, by rpm with a database of
its own. live_rotation.py is a part of the story. --debian trixie takes Debian 13 instead of this machine's root, and the
units with the drop-in for a newer systemd: debootstrap makes it under target/,
in some minutes and once.

Needs root, systemd-nspawn (Debian: systemd-container) and a systemd of this
machine that can boot. Where one of them is missing it says SKIPPED and why, and
ends with 0; with AEGIS_LIVE=1 in the environment that is a failure. Standard
library only. Takes about a minute.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import live_rotation  # noqa: E402
import nats_server  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
AGENT = "aegis-agent@orders-api.service"
STARTED = time.monotonic()


class Broken(Exception):
    """Something was not as promised."""


class Skip(Exception):
    """There is no live systemd to be had here."""


def say(text):
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deb", type=Path, help="the package; built where not given")
    parser.add_argument("--rpm", type=Path, help="the .rpm; not tried where not given")
    parser.add_argument("--debian", metavar="NAME", help="a release of Debian instead of this machine's")
    options = parser.parse_args()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, interrupt)
    machine = None
    scratch = tempfile.TemporaryDirectory(prefix="aegis-live-package-")
    try:
        require()
        base = Path("/") if options.debian is None else debian(options.debian)
        deb = options.deb or build(Path(scratch.name))
        machine = Machine(deb, base)
        machine.boot()
        story = Story(machine, deb)
        story.tell()
        if options.rpm:
            story.with_rpm(options.rpm)
    except Skip as why:
        say(f"SKIPPED: live systemd test: {why}")
        return 1 if os.environ.get("AEGIS_LIVE") == "1" else 0
    except (Broken, nats_server.NoServer) as problem:
        say(f"FAILED: {problem}")
        if machine:
            machine.post_mortem()
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        if machine:
            machine.end()
        scratch.cleanup()
    say("all of it was seen")
    return 0


def interrupt(_signal, _frame):
    raise KeyboardInterrupt


def require():
    if os.geteuid() != 0:
        raise Skip("it needs root")
    for program, package in (("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux"), ("dpkg", "dpkg")):
        if not shutil.which(program):
            raise Skip(f"{program} is missing (Debian: {package})")
    if not any(Path(init).exists() for init in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")):
        raise Skip("this machine has no systemd to boot")


def debian(name):
    """The root of a release of Debian, with what the story uses; made once."""
    tree = ROOT / "target" / f"debian-{name}"
    if tree.exists():
        return tree
    if not shutil.which("debootstrap"):
        raise Skip("debootstrap is missing (Debian: debootstrap)")
    say(f"making {tree}")
    new = tree.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    packages = "systemd,systemd-sysv,dbus,python3,ca-certificates,man-db,procps"
    # Directories are left to root alone elsewhere; here others have to enter.
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", name, str(new), "http://deb.debian.org/debian"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=0o022)
    if done.returncode:
        raise Skip(f"debootstrap makes no {name}: {done.stdout.decode(errors='replace')[-600:]}")
    # Its dependencies are more than debootstrap resolves.
    more = "apt-get install -y --no-install-recommends prometheus-node-exporter"
    shutil.copy("/etc/resolv.conf", new / "etc/resolv.conf")
    subprocess.run(["chroot", str(new), "sh", "-c", f"DEBIAN_FRONTEND=noninteractive {more}"], stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, umask=0o022)  # fmt: skip
    new.rename(tree)
    return tree


def build(directory):
    say("building the package, of a debug build")
    call("cargo", "build", "--locked", "--quiet")
    debug = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
    made = call(
        sys.executable, "packaging/build.py", "--binary", str(debug / "aegis-agent"),
        "--architecture", os.uname().machine, "--to", str(directory), "deb",
    )  # fmt: skip
    return Path(made)


def call(*command):
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Broken(f"there is no {command[0]} on PATH") from None
    if done.returncode:
        raise Broken(f"{' '.join(command)} failed, see above")
    return done.stdout.decode().strip()


class Machine:
    """A booted overlay of this machine's root, or of another."""

    def __init__(self, deb, base):
        self.deb = deb
        self.base = base
        self.is_other = base != Path("/")
        self.directory = Path(tempfile.mkdtemp(prefix="aegis-live-"))
        self.root = self.directory / "root"
        self.process = None
        self.leader = None
        self.mounted = []
        self.cgroup = None
        self.console = self.directory.with_suffix(".log")

    def mount(self, *arguments):
        done = subprocess.run(["mount", *arguments], stderr=subprocess.PIPE)
        if done.returncode:
            raise Skip(f"mount {' '.join(arguments)}: {done.stderr.decode().strip()}")
        self.mounted.append(arguments[-1])

    def boot(self):
        # In memory: quick, and an overlay on an overlay is not possible.
        self.mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", str(self.directory))
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir()
        layers = f"lowerdir={self.base},upperdir={self.directory}/upper,workdir={self.directory}/work"
        self.mount("-t", "overlay", "-o", layers, "overlay", str(self.root))
        self.furnish()
        self.make_cgroup()
        log = open(self.console, "wb")
        # nspawn keeps to the cgroup it finds itself in (--keep-unit).
        enter = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.cgroup)]
        # systemd 256 and later boot with the unified hierarchy only.
        unified = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"} if self.is_other else {}
        nspawn = [
            "systemd-nspawn", f"--directory={self.root}", "--boot", "--register=no", "--keep-unit",
            "--private-network", "--link-journal=no", "--resolv-conf=off", f"--machine=aegis-live-{os.getpid()}",
            "--console=pipe", "systemd.unit=live.target",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            enter + nspawn, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, **unified},
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise Skip(f"systemd-nspawn does not boot here: {self.console.read_text(errors='replace')[-600:]}")
            self.leader = self.leader or self.find_leader()
            if self.leader and self.run("systemctl", "is-active", "live.target", check=False)[1] == "active":
                break
            if time.monotonic() > deadline:
                raise Skip(f"the machine does not boot within a minute: {self.console.read_text(errors='replace')[-600:]}")
            time.sleep(0.1)
        version = self.run("systemctl", "--version")[1].splitlines()[0]
        say(f"booted: {version}")

    def furnish(self):
        """What the machine has beside this machine's root."""
        etc = self.root / "etc"
        (etc / "machine-id").write_text("uninitialized\n")
        units = etc / "systemd/system"
        units.mkdir(parents=True, exist_ok=True)
        # None of the services of this machine, only what they stand on.
        (units / "live.target").write_text(
            "[Unit]\nRequires=basic.target\nWants=dbus.socket systemd-journald.service\n"
            "After=basic.target\nAllowIsolate=yes\n"
        )
        conf = etc / "systemd/journald.conf.d"
        conf.mkdir(parents=True, exist_ok=True)
        (conf / "live.conf").write_text("[Journal]\nStorage=volatile\nForwardToConsole=no\n")
        for unit in ("packagekit", "systemd-firstboot", "systemd-networkd", "polkit"):
            (units / f"{unit}.service").unlink(missing_ok=True)
            (units / f"{unit}.service").symlink_to("/dev/null")
        # What this machine starts with basic.target, it does not need here.
        for directory in ("sysinit.target.wants", "timers.target.wants", "sockets.target.wants"):
            for link in (units / directory).glob("*"):
                link.unlink()
        # Images of containers forbid packages to start anything; hosts do not.
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        local = self.root / "usr/local/bin"
        local.mkdir(parents=True, exist_ok=True)
        shutil.copy2(nats_server.find(), local / "nats-server")
        shutil.copy2(self.deb, self.root / "root" / self.deb.name)
        (units / "nats.service").write_text(
            "[Service]\nExecStart=/usr/local/bin/nats-server -a 127.0.0.1 -p 4222 -js -sd /var/lib/nats\n"
        )
        # The service notes, while it still answers, what the registry says.
        (units / "orders-api.service").write_text(
            "[Service]\n"
            "ExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 8080\n"
            "ExecStop=/usr/local/bin/at-stop\n"
            "WorkingDirectory=/var/empty-here\nRestart=on-failure\nRestartSec=3\n"
            "[Install]\nWantedBy=multi-user.target\n"
        )
        (self.root / "var/empty-here").mkdir()
        at_stop = local / "at-stop"
        at_stop.write_text(
            "#!/bin/sh\naegis-agent list --json >/run/at-stop.json\n"
            "python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:8080/\", timeout=5)' "
            "&& echo answers >/run/at-stop.answers\n"
        )
        at_stop.chmod(0o755)

    def make_cgroup(self):
        name = f"aegis-live-{os.getpid()}"
        for base in (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup")):
            if (base / "cgroup.procs").exists():
                self.cgroup = base / name
                try:
                    self.cgroup.mkdir()
                except OSError as why:
                    raise Skip(f"no cgroup of its own: {why}") from None
                return
        raise Skip("no cgroup hierarchy that systemd could use")

    def find_leader(self):
        """The machine's PID 1, by the number that it has out here."""
        parents = {}
        inside = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            except OSError:
                continue
            pid = int(status.parent.name)
            parents[pid] = int(fields["PPid"])
            numbers = fields.get("NSpid", "").split()
            if len(numbers) > 1 and numbers[-1] == "1":
                inside.append(pid)
        for pid in inside:
            above = pid
            while above in parents and above != self.process.pid:
                above = parents[above]
            if above == self.process.pid:
                return pid
        return None

    def run(self, *command, check=True, within=40):
        """A command inside; its exit code and its output."""
        nsenter = ["nsenter", "--target", str(self.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
                 "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "LC_ALL=C.UTF-8"]  # fmt: skip
        try:
            done = subprocess.run(
                nsenter + clean + list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=within,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise Broken(f"{' '.join(command)} does not end within {within} s: {late.output}") from None
        output = done.stdout.decode(errors="replace").strip()
        if check and done.returncode:
            raise Broken(f"{' '.join(command)} ended with {done.returncode}: {output}")
        return done.returncode, output

    def post_mortem(self):
        if not self.leader or self.process.poll() is not None:
            print(self.console.read_text(errors="replace")[-4000:])
            return
        for command in (
            ["systemctl", "--no-pager", "--failed"],
            ["systemctl", "--no-pager", "status", "aegis-agent*", "orders-api", "nats"],
            ["journalctl", "--no-pager", "-n", "60", "-o", "short-precise", "-u", "aegis*", "-u", "orders-api*", "-u", "nats*"],
        ):
            print(f"--- {' '.join(command)}\n{self.run(*command, check=False)[1]}")

    def end(self):
        if self.process and self.process.poll() is None:
            # SIGTERM makes nspawn shut the machine down; quicker is the end.
            for pid in self.processes_inside() + [self.process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            self.process.wait()
        for where in reversed(self.mounted):
            for _ in range(50):
                if subprocess.run(["umount", where], stderr=subprocess.DEVNULL).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                subprocess.run(["umount", "--lazy", where])
        if self.cgroup and self.cgroup.exists():
            for path, _, _ in os.walk(self.cgroup, topdown=False):
                for _ in range(20):
                    try:
                        os.rmdir(path)
                        break
                    except OSError:
                        time.sleep(0.05)
        self.directory.rmdir()
        self.console.unlink(missing_ok=True)

    def processes_inside(self):
        # Its PID 1 takes the whole PID name space with it.
        return [self.leader] if self.leader else []


class Story:
    def __init__(self, machine, deb):
        self.machine = machine
        self.run = machine.run
        self.deb = deb

    def tell(self):
        self.install()
        if self.machine.is_other:
            self.newer_systemd()
        self.first_steps()
        self.hardening()
        self.stop_and_start()
        self.crash()
        self.reload()
        self.health()
        self.draining()
        self.without_partner()
        self.upgrade()
        self.frozen()
        self.outage()
        self.credentials()
        live_rotation.tell(self)
        self.cleanup_timer()
        self.check_timer()
        self.node_exporter()
        self.reinstall()
        self.remove_and_install()
        self.purge()

    # Looks.

    def show(self, unit, name):
        return self.run("systemctl", "show", "--value", "-p", name, unit)[1]

    def pid(self):
        return int(self.show(AGENT, "MainPID"))

    def registered(self):
        code, output = self.run("aegis-agent", "list", "--json", check=False)
        if code == 69:
            return {}  # the server is not there yet
        if code:
            raise Broken(f"list ended with {code}: {output}")
        return {one["serviceName"]: one for one in json.loads(output)["instances"]}

    def wait(self, what, within, look):
        """Looks until it is so; the seconds it took, and what was seen."""
        start = time.monotonic()
        while True:
            seen = look()
            if seen:
                say(f"{what}: after {time.monotonic() - start:.2f} s")
                return seen
            if time.monotonic() - start > within:
                raise Broken(f"not seen within {within} s: {what}")
            time.sleep(0.05)

    def expect(self, what, seen):
        if not seen:
            raise Broken(f"not true: {what}")
        say(what)

    def root_path(self, path):
        return self.machine.root / path.lstrip("/")

    # The story.

    def install(self):
        name = f"./{self.deb.name}"
        self.expect_plain(self.run("sh", "-c", f"cd /root && apt-get install -y {name}", within=90)[1])
        say(f"installed {self.deb.name}, {self.deb.stat().st_size / 1024:.0f} KiB")
        states = self.run("systemctl", "list-unit-files", "--no-legend", "aegis-agent*")[1]
        units = dict(line.split()[:2] for line in states.splitlines())
        self.expect(
            f"nothing is enabled by itself: {', '.join(sorted(units))}",
            len(units) == 6 and set(units.values()) <= {"disabled", "static"},
        )
        running = self.run("systemctl", "list-units", "--no-legend", "--all", "aegis-agent*", check=False)[1]
        self.expect("nothing is started by itself", "active" not in running.replace("inactive", ""))
        self.verify()

    def verify(self):
        verified = self.run("systemd-analyze", "verify", AGENT, "aegis-agent.service", "aegis-agent-check.timer",
                            "aegis-agent-cleanup.timer")[1]  # fmt: skip
        self.expect(f"systemd-analyze verify has nothing to say, man pages included: {verified!r}", verified == "")
        for unit in (AGENT, "aegis-agent.service", "aegis-agent-check.service", "aegis-agent-cleanup.service"):
            last = self.run("systemd-analyze", "security", "--no-pager", "--threshold=12", unit)[1].splitlines()[-1]
            say(last.strip("→ "))

    def newer_systemd(self):
        """All that follows is with the drop-in of the examples."""
        for unit in ("aegis-agent@", "aegis-agent", "aegis-agent-check", "aegis-agent-cleanup"):
            self.run("install", "-D", "-m", "644", "/usr/share/doc/aegis-agent/examples/newer-systemd.conf",
                     f"/etc/systemd/system/{unit}.service.d/newer-systemd.conf")  # fmt: skip
        self.run("systemctl", "daemon-reload")
        self.verify()

    def first_steps(self):
        self.run("systemctl", "start", "nats.service")
        self.run("systemctl", "enable", "--now", "orders-api.service")
        # As in the README, after the installation.
        for command in (
            "echo NATS_URL=nats://127.0.0.1:4222 >>/etc/aegis-agent/agent.env",
            "systemctl enable --now aegis-agent@orders-api.service",
            "systemctl status --no-pager aegis-agent@orders-api.service",
            "aegis-agent list",
        ):
            output = self.run("sh", "-c", command)[1]
            say(f"$ {command}")
            for line in output.splitlines():
                print(f"            {line}")
        self.expect("orders-api is registered", "orders-api" in self.registered())
        status = self.show(AGENT, "StatusText")
        self.expect(f"StatusText={status}", status.startswith("registered orders-api/"))
        text = self.run("runuser", "-u", "nobody", "--", "cat", "/run/aegis-agent/orders-api/metrics.prom")[1]
        self.expect("its metrics are readable for everybody and say so", "aegis_agent_registered{" in text)
        log = self.run("journalctl", "--no-pager", "-u", AGENT, "-o", "cat")[1]
        self.expect("systemd misses no variable of the unit", "unset environment variable" not in log)

    def hardening(self):
        status = self.run("cat", f"/proc/{self.pid()}/status")[1]
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        user = fields["Uid"].split()
        self.expect(f"it runs as user {user[0]}, not as root", "0" not in user)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.expect(f"{name} is {fields[name]}", int(fields[name], 16) == 0)
        self.expect("NoNewPrivs is 1", fields["NoNewPrivs"] == "1")
        self.expect("Seccomp is 2 (filter)", fields["Seccomp"] == "2")
        # What it sees of the file system.
        mounts = self.run("cat", f"/proc/{self.pid()}/mountinfo")[1]
        options = {line.split()[4]: line.split()[5].split(",") for line in mounts.splitlines()}
        self.expect("its root is read-only", "ro" in options["/"])
        self.expect("its /proc hides others' processes", "hidepid" in mounts or "subset=pid" in mounts)

    def stop_and_start(self):
        self.run("systemctl", "stop", "orders-api.service")
        at_stop = self.run("cat", "/run/at-stop.json")[1]
        self.expect(
            "gone from the registry before the service stops to answer",
            json.loads(at_stop)["instances"] == [] and self.run("cat", "/run/at-stop.answers")[1] == "answers",
        )
        self.expect("the agent has stopped with its service", self.show(AGENT, "ActiveState") == "inactive")
        self.run("systemctl", "start", "orders-api.service")
        self.wait("registered when its service starts again", 5, lambda: "orders-api" in self.registered())

    def crash(self):
        agent = self.pid()
        self.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "orders-api.service")
        self.wait("gone after the service's crash", 2, lambda: "orders-api" not in self.registered())
        self.wait("back after its automatic restart", 10, lambda: "orders-api" in self.registered())
        self.expect("by a fresh agent", self.pid() not in (0, agent))
        self.expect("the service was restarted once", self.show("orders-api.service", "NRestarts") == "1")

    def reload(self):
        agent = self.pid()
        before = self.registered()["orders-api"]
        self.run("sh", "-c", "echo AEGIS_SERVICE_VERSION=2.0.0 >/etc/aegis-agent/orders-api.env")
        self.run("systemctl", "reload", AGENT)
        self.wait("systemctl reload reads the environment files anew", 5,
                  lambda: self.registered()["orders-api"]["version"] == "2.0.0")  # fmt: skip
        after = self.registered()["orders-api"]
        self.expect("in the same process, and the entry never went", self.pid() == agent and
                    after["metadata"]["pid"] == before["metadata"]["pid"])  # fmt: skip
        log = self.run("journalctl", "--no-pager", "-u", AGENT, "-o", "cat")[1]
        self.expect("which it says", "reloaded the settings of orders-api/" in log)
        owner = self.run("stat", "-c", "%a", "/run/aegis-agent/orders-api/environment")[1]
        self.expect(f"the environment is left with mode {owner}", owner == "600")
        self.expect("active again", self.show(AGENT, "ActiveState") == "active")

    def health(self):
        """A check of the service, within the agent's own sandbox."""
        self.run("touch", "/run/well")
        environment = "AEGIS_INTERVAL=1s\nAEGIS_HEALTH_FAILURES=1\nAEGIS_HEALTH_TCP=localhost:8080\n"
        self.write_env("orders-api", environment + "AEGIS_HEALTH_EXEC=sh -c 'test -e /run/well'\n")
        self.run("systemctl", "reload", AGENT)
        time.sleep(2.5)
        status = lambda: self.registered()["orders-api"]["status"]  # noqa: E731
        self.expect("healthy, by a command and by a port", status() == "ACTIVE")
        self.run("rm", "/run/well")
        self.wait("UNHEALTHY when its check fails", 5, lambda: status() == "UNHEALTHY")
        say(f"StatusText={self.show(AGENT, 'StatusText')}")
        self.run("touch", "/run/well")
        self.wait("ACTIVE when it passes", 5, lambda: status() == "ACTIVE")
        self.write_env("orders-api", "")

    def draining(self):
        """The way of docs/systemd.md."""
        self.run("sh", "-c", "echo 'kernel upgrade' >/etc/aegis-agent/orders-api.drain")
        self.run("systemctl", "reload", AGENT)
        self.wait("STANDBY as soon as the drain file is there", 2,
                  lambda: self.registered()["orders-api"]["status"] == "STANDBY")  # fmt: skip
        self.expect("with its reason", self.registered()["orders-api"]["metadata"]["drain"] == "kernel upgrade")
        self.wait("which systemctl status shows", 2,
                  lambda: "as STANDBY (draining: kernel upgrade)" in self.show(AGENT, "StatusText"))  # fmt: skip
        self.run("systemctl", "restart", AGENT)
        self.wait("a restart changes nothing of it", 5,
                  lambda: self.registered().get("orders-api", {}).get("status") == "STANDBY")  # fmt: skip
        self.run("rm", "/etc/aegis-agent/orders-api.drain")
        self.run("systemctl", "reload", AGENT)
        self.wait("ACTIVE when it is gone", 2,
                  lambda: self.registered()["orders-api"]["status"] == "ACTIVE")  # fmt: skip

    def without_partner(self):
        self.write_env("aegis-agent", "AEGIS_SERVICE=mainframe\n")
        self.run("systemctl", "start", "aegis-agent.service")
        self.wait("aegis-agent.service speaks for a service that is no unit", 5, lambda: "mainframe" in self.registered())
        self.run("systemctl", "stop", "aegis-agent.service")
        self.expect("and takes it out", "mainframe" not in self.registered())
        self.write_env("aegis-agent", "AEGIS_SERVICE=Main Frame\n")
        self.run("systemctl", "start", "aegis-agent.service", check=False)
        time.sleep(2.5)
        seen = [self.show("aegis-agent.service", name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")]
        self.expect(f"what a restart cannot cure is not restarted: {seen}", seen == ["failed", "78", "0"])
        self.run("systemctl", "reset-failed", "aegis-agent.service")

    def dpkg(self, *arguments):
        self.expect_plain(self.run("dpkg", *arguments, within=90)[1])

    def expect_plain(self, said):
        if "Syntax:" in said or "aegis-agent: " in said:
            raise Broken(f"the scripts of the package say something: {said}")

    def upgrade(self):
        agent = self.pid()
        # As if the package that is there had another unit.
        unit = "/usr/lib/systemd/system/aegis-agent@.service"
        self.run("sed", "-i", "s/^Description=.*/Description=of before/", unit)
        self.run("systemctl", "daemon-reload")
        self.expect("the unit is another one", self.show(AGENT, "Description") == "of before")
        self.dpkg("-i", f"/root/{self.deb.name}")
        self.wait("an upgrade restarts the agents that run", 5, lambda: self.pid() not in (0, agent))
        self.expect("by the new unit", self.show(AGENT, "Description") == "Service registry agent for orders-api"
                    and self.show(AGENT, "NeedDaemonReload") == "no")  # fmt: skip
        self.wait("which register again", 5, lambda: "orders-api" in self.registered())
        self.expect("and no other", self.show("aegis-agent.service", "ActiveState") == "inactive")
        kept = self.run("cat", "/etc/aegis-agent/agent.env")[1]
        self.expect("and the settings stay", "\nNATS_URL=nats://127.0.0.1:4222" in kept)

    def write_env(self, name, text):
        self.root_path(f"/etc/aegis-agent/{name}.env").write_text(text)

    def frozen(self):
        self.drop_in(AGENT, "watchdog", "[Service]\nWatchdogSec=2s\n")
        self.run("systemctl", "restart", AGENT)
        agent = self.pid()
        time.sleep(4)
        self.expect("a watchdog of 2 s is content with a healthy agent", self.pid() == agent)
        self.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", AGENT)
        self.wait("the watchdog restarts a frozen agent (SIGSTOP)", 10, lambda: self.pid() not in (0, agent))
        self.wait("which registers again", 5, lambda: self.show(AGENT, "StatusText").startswith("registered"))
        log = self.run("journalctl", "--no-pager", "-u", AGENT)[1]
        self.expect("the journal says why", "Watchdog timeout" in log)

    def outage(self):
        agent = self.pid()
        self.run("systemctl", "stop", "nats.service")
        self.wait("an outage is in the status", 15, lambda: self.show(AGENT, "StatusText").startswith("no registry since"))
        say(f"StatusText={self.show(AGENT, 'StatusText')}")
        time.sleep(5)
        self.expect("and trips no watchdog", self.pid() == agent and self.show(AGENT, "ActiveState") == "active")
        start = time.monotonic()
        self.run("systemctl", "restart", AGENT)
        took = time.monotonic() - start
        self.expect(f"without a registry it is ready after {took:.1f} s", 9 < took < 14)
        self.run("systemctl", "start", "nats.service")
        self.wait("registered when the registry is back", 5, lambda: "orders-api" in self.registered())

    def credentials(self):
        """The drop-in of the examples, with a server that asks for a login."""
        etc = self.root_path("/etc")
        (etc / "nats-2.conf").write_text(
            'listen: "127.0.0.1:4223"\njetstream { store_dir: "/var/lib/nats-2" }\n'
            "authorization { users: [ { user: agent, password: secret } ] }\n"
        )
        units = etc / "systemd/system"
        (units / "nats-2.service").write_text("[Service]\nExecStart=/usr/local/bin/nats-server -c /etc/nats-2.conf\n")
        (units / "payments.service").write_text("[Service]\nExecStart=/bin/sleep infinity\n")
        self.write_env("payments", "NATS_URL=nats://localhost:4223\nNATS_USER=agent\n")
        secret = etc / "aegis-agent/payments.password"
        secret.write_text("secret\n")
        secret.chmod(0o600)
        unit = "aegis-agent@payments.service"
        self.drop_in(unit, "credentials", "[Service]\nLoadCredential=password:/etc/aegis-agent/payments.password\n"
                     "Environment=\"AEGIS_OPTIONS=--password-file %d/password\"\n")  # fmt: skip
        self.run("systemctl", "start", "nats-2.service", "payments.service", unit)
        self.wait("registered with a secret from LoadCredential=, mode 0600, by a host name", 5,
                  lambda: self.show(unit, "StatusText").startswith("registered payments/"))  # fmt: skip
        self.run("systemctl", "stop", "payments.service", "nats-2.service")

    def cleanup_timer(self):
        put("service-instances__orders-api__ghost", stale("orders-api", "ghost"), self.machine)
        self.expect("a stale entry is there", "ghost" in self.run("aegis-agent", "list", "--all")[1])
        self.drop_in("aegis-agent-cleanup.timer", "soon", "[Timer]\nOnCalendar=\nOnActiveSec=1s\nRandomizedDelaySec=0\n")
        self.run("systemctl", "start", "aegis-agent-cleanup.timer")
        self.wait("the timer cleans", 15, lambda: "ghost" not in self.run("aegis-agent", "list", "--all")[1])
        self.wait("the service has ended well", 5, lambda: self.show("aegis-agent-cleanup.service", "ActiveState") == "inactive")
        self.expect("and the living are spared", "orders-api" in self.registered())
        # The cron line does nothing beside the timers; without them, its moment
        # come, it does.
        cron = (ROOT / "systemd/aegis-agent.cron").read_text()
        line = next(line for line in cron.splitlines() if line.startswith("*/5 "))
        user, command = line.replace("\\%", "%").split(" ", 6)[5:]
        put("service-instances__orders-api__ghost", stale("orders-api", "ghost"), self.machine)
        as_cron = ["runuser", "-u", user, "--", "sh", "-c"]
        self.expect("cron leaves it to the timer", self.run(*as_cron, command)[1] == "" and
                    "ghost" in self.run("aegis-agent", "list", "--all")[1])  # fmt: skip
        alone = command.replace("/run/systemd/system", "/nowhere").replace("% 240", "% 1")
        said = self.run(*as_cron, alone)[1]
        self.expect(f"cron cleans where there are no timers, and says: {said!r}",
                    "ghost" not in self.run("aegis-agent", "list", "--all")[1])  # fmt: skip

    def check_timer(self):
        self.drop_in("aegis-agent-check.timer", "soon", "[Timer]\nOnCalendar=\nOnActiveSec=1s\nRandomizedDelaySec=0\n")
        self.run("systemctl", "start", "aegis-agent-check.timer")
        path = "/run/aegis-agent-check/aegis-agent.prom"
        self.wait("the check's metrics are written", 15, lambda: self.run("test", "-e", path, check=False)[0] == 0)
        text = self.run("runuser", "-u", "nobody", "--", "cat", path)[1]
        self.expect("in Prometheus text, readable for everybody", "# TYPE" in text)

    def node_exporter(self):
        """The way of docs/systemd.md, with a real one."""
        if self.run("sh", "-c", "command -v prometheus-node-exporter", check=False)[0]:
            say("SKIPPED: no node_exporter here (Debian: prometheus-node-exporter)")
            return
        document = (ROOT / "docs/systemd.md").read_text()
        commands = document.split("<!-- node_exporter -->\n```sh\n")[1].split("```")[0]
        self.root_path("/var/lib/prometheus/node-exporter/others.prom").write_text("others_metric 1\n")
        say(self.run("sh", "-ec", "prometheus-node-exporter --version 2>&1 | head -1")[1])
        self.run("sh", "-ec", commands)
        metrics = lambda: self.wait("node_exporter answers", 10, self.scrape)  # noqa: E731
        of = 'aegis_agent_registered{bucket="service_registry"'
        seen = metrics()
        self.expect("it serves the agent's metrics", any(line.startswith(of) for line in seen))
        self.expect("the check's", "aegis_check_status" in "".join(seen) or "aegis_instances" in "".join(seen))
        self.expect("and what it read before", "others_metric 1" in seen)
        self.expect("without an error", "node_textfile_scrape_error 0" in seen)
        self.run("systemctl", "stop", AGENT)
        seen = metrics()
        self.expect("the agent stopped: its metrics are gone", not any(line.startswith(of) for line in seen))
        self.expect("and that is no error", "node_textfile_scrape_error 0" in seen and "others_metric 1" in seen)
        dangling = self.run("find", "/run/aegis-agent", "/var/lib/prometheus/node-exporter", "-xtype", "l")[1]
        self.expect("nor does any link dangle", dangling == "")
        self.run("systemctl", "start", AGENT)
        self.wait("started, they are back", 10,
                  lambda: any(line.startswith(of) and line.endswith(" 1") for line in self.scrape()))  # fmt: skip
        # And that of the unit for what is no unit.
        self.write_env("aegis-agent", "AEGIS_SERVICE=mainframe\n")
        self.run("systemctl", "start", "aegis-agent.service")
        self.wait("those of aegis-agent.service, too", 10,
                  lambda: any(line.startswith(of) and "mainframe" in line for line in self.scrape()))  # fmt: skip
        self.run("systemctl", "stop", "aegis-agent.service", "prometheus-node-exporter.service")
        self.run("rm", "/etc/aegis-agent/aegis-agent.env")

    def scrape(self):
        """The lines that node_exporter answers with; nothing where it does not."""
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9100/metrics', timeout=5).read().decode())"
        done, text = self.run("python3", "-c", code, check=False)
        return [] if done else text.splitlines()

    def reinstall(self):
        """Neither enables nor starts anything, and keeps what is enabled."""
        enabled = self.links()
        self.run("systemctl", "stop", "aegis-agent-check.timer", AGENT)
        self.dpkg("-i", f"/root/{self.deb.name}")
        self.expect(f"the package once more: enabled is what was, {sorted(enabled)}", self.links() == enabled)
        states = {unit: self.show(unit, "ActiveState") for unit in ("aegis-agent-check.timer", AGENT)}
        self.expect("and what was stopped is not started", set(states.values()) == {"inactive"})
        self.run("systemctl", "start", AGENT)

    def remove_and_install(self):
        self.run("systemctl", "enable", "--now", "aegis-agent-cleanup.timer")
        enabled = self.links()
        self.dpkg("--remove", "aegis-agent")
        self.expect("removing the package stops the agents", self.run("pidof", "aegis-agent", check=False)[0] != 0)
        self.expect("and the timers", self.show("aegis-agent-cleanup.timer", "ActiveState") == "inactive")
        self.expect("the settings are left", self.run("test", "-e", "/etc/aegis-agent/agent.env", check=False)[0] == 0)
        log = self.run("journalctl", "--no-pager", "-u", AGENT, "-o", "cat")[1]
        self.expect("and the entry was taken out", "deregistered orders-api/" in "\n".join(log.splitlines()[-6:]))
        self.dpkg("-i", f"/root/{self.deb.name}")
        self.expect("installed again: what was enabled is enabled, no more", self.links() == enabled)
        self.expect("the timer of before runs", self.show("aegis-agent-cleanup.timer", "ActiveState") == "active")
        self.expect("the one that was not enabled does not", self.show("aegis-agent-check.timer", "ActiveState") == "inactive")
        self.expect("nor an agent for no unit", self.show("aegis-agent.service", "ActiveState") == "inactive")
        self.wait("the agent of the service that runs registers", 5, lambda: "orders-api" in self.registered())

    def purge(self):
        self.dpkg("--purge", "aegis-agent")
        left = self.leavings()
        self.expect(f"a purge leaves no file: {left}", left == [])
        self.expect("nor anything enabled", self.links() == set())
        self.dpkg("-i", f"/root/{self.deb.name}")
        self.expect("installed anew, nothing is enabled", self.links() == set())
        self.expect("and nothing runs", self.run("pidof", "aegis-agent", check=False)[0] != 0)
        self.dpkg("--purge", "aegis-agent")

    def with_rpm(self, package):
        """The same with rpm, and no database of packages but its own."""
        if self.run("sh", "-c", "command -v rpm", check=False)[0]:
            say("SKIPPED: no rpm here (Debian: rpm)")
            return
        shutil.copy2(package, self.root_path(f"/root/{package.name}"))
        # The rpm of Debian wants to be told; systemd is Debian's, no rpm's.
        rpm = ["rpm", "--force-debian", "--nodeps"]
        file = f"/root/{package.name}"
        self.run("rpm", "--initdb")
        self.run(*rpm, "--install", file, within=90)
        say(f"rpm has installed {package.name}, {package.stat().st_size / 1024:.0f} KiB")
        self.expect("nothing is enabled by itself", self.links() == set())
        self.expect("nothing runs", self.run("pidof", "aegis-agent", check=False)[0] != 0)
        self.expect("its files are as they were packed", self.run(*rpm, "--verify", "aegis-agent")[1] == "")
        group = self.run("getent", "group", "aegis-agents")[1]
        self.expect(f"the group is there: {group}", group.startswith("aegis-agents:"))
        self.expect("and the directory of the check's metrics",
                    self.run("stat", "-c", "%G", "/run/aegis-agent-check")[1] == "aegis-agents")  # fmt: skip
        self.run("sh", "-c", "echo NATS_URL=nats://127.0.0.1:4222 >>/etc/aegis-agent/agent.env")
        self.run("systemctl", "enable", "--now", AGENT)
        self.run("systemctl", "enable", "--now", "aegis-agent-cleanup.timer")
        self.wait("an agent registers", 5, lambda: "orders-api" in self.registered())
        agent = self.pid()
        enabled = self.links()
        self.run(*rpm, "--upgrade", "--replacepkgs", file, within=90)
        self.wait("an upgrade restarts it", 5, lambda: self.pid() not in (0, agent))
        self.wait("which registers again", 5, lambda: "orders-api" in self.registered())
        self.expect(f"enabled is what was: {sorted(enabled)}", self.links() == enabled)
        self.expect("the timer runs", self.show("aegis-agent-cleanup.timer", "ActiveState") == "active")
        self.expect("and the settings stay", "\nNATS_URL=" in self.run("cat", "/etc/aegis-agent/agent.env")[1])
        self.run(*rpm, "--erase", "aegis-agent", within=90)
        log = self.run("journalctl", "--no-pager", "-u", AGENT, "-o", "cat")[1]
        self.expect("erased: the entry was taken out", "deregistered orders-api/" in "\n".join(log.splitlines()[-6:]))
        self.expect("nothing is enabled", self.links() == set())
        self.expect("nothing runs", self.run("pidof", "aegis-agent", check=False)[0] != 0)
        self.expect("nor a timer", self.show("aegis-agent-cleanup.timer", "ActiveState") == "inactive")
        kept = "/etc/aegis-agent/agent.env.rpmsave"
        self.expect(f"the changed settings are in {kept}", self.run("test", "-e", kept, check=False)[0] == 0)
        self.run("rm", "-r", "/etc/aegis-agent")
        self.expect("and nothing else is left", self.leavings() == [])

    def leavings(self):
        return self.run("find", "/etc", "/usr/bin", "/usr/lib", "/usr/share", "/var", "/run",
                        "-path", "/var/lib/dpkg/info", "-prune", "-o", "-path", "/run/log", "-prune", "-o",
                        "-path", "/var/cache/man", "-prune", "-o",  # written by man itself
                        "-iname", "*aegis-agent*", "-print", check=False)[1].splitlines()  # fmt: skip

    def links(self):
        """What is enabled: the links under /etc/systemd/system."""
        found = self.run("find", "/etc/systemd/system", "-type", "l", "-name", "aegis-agent*", "-printf", "%P ")[1]
        return set(found.split())

    def drop_in(self, unit, name, text):
        directory = self.root_path(f"/etc/systemd/system/{unit}.d")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.conf").write_text(text)
        self.run("systemctl", "daemon-reload")


def stale(service, instance):
    return json.dumps({
        "serviceName": service, "instanceId": instance, "version": "1.0.0", "status": "ACTIVE",
        "lastHeartbeat": "2020-01-01T00:00:00.000000+00:00", "stickyActiveGroup": None, "metadata": {},
    })  # fmt: skip


PUT = """
import socket, sys
key, value = sys.argv[1], sys.argv[2]
with socket.create_connection(("127.0.0.1", 4222), timeout=5) as connection:
    words = connection.makefile("rb")
    words.readline()
    payload = value.encode()
    connection.sendall(b'CONNECT {"verbose":false,"pedantic":false,"lang":"python","version":"0"}\\r\\n'
        b"SUB inbox 1\\r\\nPUB $KV.service_registry.%s inbox %d\\r\\n%s\\r\\n" % (key.encode(), len(payload), payload))
    while not words.readline().startswith(b"MSG"):
        pass
"""


def put(key, value, machine):
    """Stores a value without a TTL, as a writer of old would."""
    machine.run("python3", "-c", PUT, key, value)


if __name__ == "__main__":
    sys.exit(main())
