"""A lock on a run directory, so that it has one writer; it never outlives its process."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from common.errors import InputError

LOCK_FILE = ".lock"
_FLOCK = "hhqqi4x"
"""struct flock of Linux's fcntl(2): kind, whence, start, length, process."""


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[str]:
    """Hold the lock of a run directory within the block; yields what the lock file says of its holder.

    A POSIX record lock: released by the system when the process ends, known to network file systems, not inherited by
    children. A directory that was created for it and stays empty is removed. Raises :class:`InputError` if the lock is held
    or cannot be taken.
    """
    path = directory / LOCK_FILE
    try:
        new = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); choose another output_dir") from None
    # In containers another launch may have the same process number and host name.
    holder = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "launch": secrets.token_hex(8)})
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock still holds
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        yield holder
    finally:
        with contextlib.suppress(OSError):  # the folder is gone or read-only by now
            path.unlink()  # before the lock is released: whoever waits finds a new file and tries again
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty
            for folder in new:
                folder.rmdir()


def held_by(directory: Path) -> str:
    """What the lock file says of its holder, or of one that was killed; empty if it cannot be read. The holder must not
    call it: closing any descriptor of the file releases all record locks that the process has on it."""
    try:
        return (directory / LOCK_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def lock_holder(directory: Path) -> str | None:
    """Which process holds the lock of a run directory; None if none does. The holder must not call it, as with
    :func:`held_by`."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Asked for and not tried: a run that begins meanwhile must not find it taken.
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
        return None if kind == fcntl.F_UNLCK else _holder(descriptor)
    except OSError:  # no locks here: the run itself says so
        return None
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """A descriptor of the current lock file, with the lock on it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{path.parent}: {holder} is writing this run; wait for it, stop it, or choose another name"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"{path}: the file system cannot lock files ({error.strerror}); choose another output_dir"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # its holder has just ended and removed the file


def _holder(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(facts['process'])} on {facts['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # one that has not written its name yet
