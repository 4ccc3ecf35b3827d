"""Lean containers: a read-only root, a scratch folder, chroot, and a control group from a pool (SOCK, USENIX ATC 2018).

What makes containers slow is left out: no overlay file system, no mount or network namespace of their own. All of this
needs root; `enter` and `leave` are for the process that is to live in the container, the rest for whoever starts it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from nubes.drivers.local.limits import Limits

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class Lean:
    """Containers over one base root, which has a folder `scratch`; `folder` holds their mount points."""

    def __init__(self, base: Path, folder: Path, limits: Limits, cpu: float, memory_bytes: int) -> None:
        self.base = base
        self.folder = folder
        self.limits = limits
        self.size = (cpu, memory_bytes)

    def create(self, name: str) -> tuple[Path, str]:
        """The root and the control group of a new container."""
        root, scratch = self.folder / name, self.folder / f"{name}.scratch"
        root.mkdir()
        scratch.mkdir()
        mount(self.base, root, "", MS_BIND)
        mount(self.base, root, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
        mount(scratch, root / "scratch", "", MS_BIND)
        return root, self.limits.take(*self.size)

    def enter(self, root: Path, group: str) -> None:
        """Moves the calling process into the container."""
        for path, content in self.limits.plan(group, *self.size):
            with open(path, "w") as file:
                file.write(content)
        os.chroot(root)
        os.chdir("/scratch")

    def destroy(self, root: Path, group: str) -> None:
        """Ends what runs in the container and takes it apart; its scratch folder must be empty by then."""
        self.limits.give_back(group)
        unmount(root / "scratch")
        unmount(root)
        root.rmdir()
        root.with_name(f"{root.name}.scratch").rmdir()


def mount(source: Path | str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises `OSError`."""
    arguments = (str(source).encode(), str(target).encode(), kind.encode() or None, flags, options.encode() or None)
    if _libc.mount(*arguments):
        _fail(f"mount {target}")


def unmount(target: Path) -> None:
    """umount2(2), at once even if something still uses it. Raises `OSError`."""
    if _libc.umount2(str(target).encode(), MNT_DETACH):
        _fail(f"umount {target}")


def unshare(flags: int) -> None:
    """unshare(2): new namespaces for the calling process. Raises `OSError`."""
    if _libc.unshare(flags):
        _fail("unshare")


def own_mounts() -> None:
    """A mount namespace of its own: what the calling process mounts from here on goes away with it."""
    unshare(CLONE_NEWNS)
    mount("none", Path("/"), "", MS_REC | MS_PRIVATE)


def available() -> str:
    """Why containers cannot be made here; empty if they can."""
    if os.geteuid():
        return "containers need root"
    pid = os.fork()
    if pid == 0:
        try:
            own_mounts()
            os._exit(0)
        except OSError:
            os._exit(1)
    return "this kernel gives no mount namespaces" if os.waitpid(pid, 0)[1] else ""


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
