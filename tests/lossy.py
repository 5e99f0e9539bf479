#!/usr/bin/env python3
"""Two network namespaces, and a slow and lossy way between them.

Usage: tests/lossy.py PERCENT MILLISECONDS        (as root; Linux)

Prints the process ids that hold the client's and the server's namespace, in
one line. Each packet is lost with this chance, and is so long on its way, in
either direction; what TCP makes of it is up to the kernel. On standard input
`count` is answered with how many packets passed and how many were lost. Ends,
and takes the namespaces with it, when its standard input ends.

The client has 10.77.1.2, the server 10.77.2.2. Packets come and go by a tun
device on each side: the kernel needs no queueing discipline for it (netem).
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import socket
import struct
import sys
import time

from network import address, default_route, unshare


def host(ip, gateway):
    """A child in a namespace of its own; its process id and its tun device."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        ours.close()
        unshare()
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        # IFF_TUN | IFF_NO_PI
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x1001))
        address("lo", None)
        address("eth0", ip)
        default_route(gateway)
        socket.send_fds(theirs, [b"."], [tun])
        signal.pause()
        os._exit(0)
    theirs.close()
    said, tuns, _, _ = socket.recv_fds(ours, 1, 1)
    if said != b"." or len(tuns) != 1:
        raise OSError("no tun device in a network namespace (root is needed)")
    return pid, tuns[0]


def main():
    chance, delay = float(sys.argv[1]) / 100, float(sys.argv[2]) / 1000
    hosts = [host(f"10.77.{net}.2", f"10.77.{net}.1") for net in (1, 2)]
    print(*(pid for pid, _ in hosts), flush=True)
    other = {hosts[0][1]: hosts[1][1], hosts[1][1]: hosts[0][1]}
    under_way, number, lost = [], 0, 0
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, to, packet = heapq.heappop(under_way)
            try:
                os.write(to, packet)
            except OSError:
                pass
        wait = under_way[0][0] - now if under_way else None
        for ready in select.select([sys.stdin, *other], [], [], wait)[0]:
            if ready is sys.stdin:
                if not sys.stdin.readline():
                    for pid, _ in hosts:
                        os.kill(pid, signal.SIGKILL)
                    return
                print(number - lost, lost, flush=True)
                continue
            try:
                packet = os.read(ready, 1 << 16)
            except BlockingIOError:
                continue
            number += 1
            if random.random() < chance:
                lost += 1
            else:
                heapq.heappush(under_way, (time.monotonic() + delay, number, other[ready], packet))


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"lossy.py: {error}")
