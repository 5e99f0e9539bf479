#!/usr/bin/env python3
"""A file system with at most one file, `drain`, that hangs when it is told to.

Usage: tests/hanging_fs.py DIRECTORY        (as root; Linux with FUSE)

Mounts itself there and obeys lines on its standard input, each answered with
`done`:

    write TEXT      the file is there, with this text
    remove          it is not
    hang            whoever looks from now on waits
    go              and goes on

Says `mounted` at first. Ends when its standard input ends. It keeps nothing in
the kernel's caches, as a network share whose times have run out. (FUSE, version
7.31 of the protocol: linux/fuse.h.)
"""

import ctypes
import errno
import os
import select
import stat
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE = 1, 2, 3, 14, 15, 18
FLUSH, INIT, INTERRUPT, BATCH_FORGET = 25, 26, 36, 42
ROOT, FILE = 1, 2


def attributes(node, text):
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
    size = 0 if node == ROOT else len(text)
    return struct.pack("6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(code, node, body, text):
    """The reply to a request; an error as a negative number."""
    if code == INIT:
        return struct.pack("4I2H2I2H8I", 7, 31, 1 << 16, 0, 1, 1, 1 << 16, 1, 0, 0, *[0] * 8)
    if code == LOOKUP:
        if body.rstrip(b"\0") != b"drain" or text is None:
            return -errno.ENOENT
        return struct.pack("4Q2I", FILE, 0, 0, 0, 0, 0) + attributes(FILE, text)
    if code == GETATTR:
        if node == FILE and text is None:
            return -errno.ENOENT
        return struct.pack("Q2I", 0, 0, 0) + attributes(node, text)
    if code == OPEN:
        # FOPEN_DIRECT_IO: nothing is kept.
        return struct.pack("Q2I", 0, 1, 0)
    if code == READ:
        offset, size = struct.unpack("8xQI", body[:20])
        return (text or b"")[offset : offset + size]
    return b"" if code in (FLUSH, RELEASE) else -errno.ENOSYS


def main():
    directory = os.fsencode(sys.argv[1])
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if LIBC.mount(b"tests", directory, b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "no FUSE can be mounted here")
    print("mounted", flush=True)
    text, hangs = None, False
    while True:
        waits_for = [sys.stdin] if hangs else [sys.stdin, fuse]
        ready = select.select(waits_for, [], [])[0]
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                break
            verb, _, rest = line.rstrip("\n").partition(" ")
            if verb in ("hang", "go"):
                hangs = verb == "hang"
            else:
                text = rest.encode() if verb == "write" else None
            print("done", flush=True)
            continue
        request = os.read(fuse, 1 << 20)
        _, code, number, node = struct.unpack("2I2Q", request[:24])
        if code in (FORGET, INTERRUPT, BATCH_FORGET):
            continue
        reply = answer(code, node, request[40:], text)
        error, reply = (reply, b"") if isinstance(reply, int) else (0, reply)
        try:
            os.write(fuse, struct.pack("IiQ", 16 + len(reply), error, number) + reply)
        except OSError as failed:
            # Who asked is gone.
            if failed.errno != errno.ENOENT:
                raise
    LIBC.umount2(directory, 2)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"hanging_fs.py: {error}")
