#!/usr/bin/env python3
"""Three network namespaces in a row: client - router - server.

Usage: tests/network.py            (as root; Linux)

Prints the process ids that hold the client's and the server's namespace, in
one line, and then obeys lines on its standard input:

    lose client     drop, silently, what comes from the client
    lose server     drop, silently, what comes from the server
    pass client     let it through again
    pass server

Ends, and takes the namespaces with it, when its standard input ends. The
client has 10.77.1.2, the server 10.77.2.2. Packets are dropped by taking the
router's `forwarding` of one interface away: no ICMP, no reset, nothing but the
kernel is needed (neither iproute2 nor nftables).
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def unshare():
    if LIBC.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace (root is needed)")


def attribute(kind, data):
    length = 4 + len(data)
    return struct.pack("HH", length, kind) + data + bytes(-length % 4)


def netlink(kind, flags, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.sendall(struct.pack("IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
        code = struct.unpack("i", link.recv(4096)[16:20])[0]
        if code:
            raise OSError(-code, os.strerror(-code))


def veth(name, peer_pid):
    """A pair: `name` here, `eth0` in the namespace of `peer_pid`."""
    header = struct.pack("BBHiII", socket.AF_UNSPEC, 0, 0, 0, 0, 0)
    peer = header + attribute(3, b"eth0\0") + attribute(19, struct.pack("I", peer_pid))
    info = attribute(1, b"veth\0") + attribute(2, attribute(1, peer))
    netlink(16, 0x600, header + attribute(3, name.encode() + b"\0") + attribute(18, info))


def default_route(gateway):
    header = struct.pack("BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0)
    netlink(24, 0x600, header + attribute(5, socket.inet_aton(gateway)))


def address(name, ip):
    """Gives the interface its address with a mask of 24 bits, and starts it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        def ask(request, value):
            fcntl.ioctl(sock, request, struct.pack("16s", name.encode()) + value + bytes(24))

        def inet(text):
            return struct.pack("HH", socket.AF_INET, 0) + socket.inet_aton(text)

        if ip:
            ask(0x8916, inet(ip))
            ask(0x891C, inet("255.255.255.0"))
        ask(0x8914, struct.pack("H", 0x41))


def host(ip, gateway):
    """A child in a namespace of its own, which goes on when it is told to."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        os.close(go_write)
        unshare()
        os.write(ready_write, b".")
        os.read(go_read, 1)
        address("lo", None)
        address("eth0", ip)
        default_route(gateway)
        os.write(ready_write, b".")
        signal.pause()
        os._exit(0)
    os.close(ready_write)
    if os.read(ready_read, 1) != b".":
        raise OSError("the child has no network namespace")
    return pid, ready_read, go_write


def forwarding(name, on):
    with open(f"/proc/sys/net/ipv4/conf/{name}/forwarding", "w") as knob:
        knob.write("1" if on else "0")


def main():
    unshare()
    hosts = {}
    for name, net in (("client", 1), ("server", 2)):
        hosts[name] = host(f"10.77.{net}.2", f"10.77.{net}.1")
    for net, (name, (pid, ready, go)) in enumerate(hosts.items(), 1):
        veth(name, pid)
        address(name, f"10.77.{net}.1")
        os.write(go, b".")
        if os.read(ready, 1) != b".":
            raise OSError(f"the {name} has no network")
    for name in hosts:
        forwarding(name, True)
    print(*(pid for pid, _, _ in hosts.values()), flush=True)
    for line in sys.stdin:
        verb, name = line.split()
        forwarding(name, verb == "pass")
        print("done", flush=True)
    for pid, _, _ in hosts.values():
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"network.py: {error}")
