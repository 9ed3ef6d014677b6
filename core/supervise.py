"""Run one command so that nothing of it outlives the process that asked for it, whatever ends that process.

    python -I -S supervise.py FD GRACE_S -- COMMAND...

FD is the read end of a pipe whose write end the asking process holds: the kernel closes it when that process ends, also
on SIGKILL, and the end of file is the sign to stop the command. Started by `core.process`; standard library only, so
that it is up in milliseconds. Linux: it makes itself the reaper of all descendants (PR_SET_CHILD_SUBREAPER), so that a
server's orphaned workers are found and ended too.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def descendants() -> list[int]:
    """Process ids of all living descendants of this process."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                parents[int(name)] = int(fields[1])
    found: list[int] = []
    frontier = {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found.extend(frontier)
    return found


def signal_all(number: int) -> None:
    """Send a signal to every descendant."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def reap() -> None:
    """Collect ended children, so that none stays a zombie."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_all(grace_s: float) -> None:
    """Ask every descendant to end, then make it."""
    signal_all(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        reap()
        if not descendants():
            return
        time.sleep(0.02)
    while descendants():
        signal_all(signal.SIGKILL)
        reap()
        time.sleep(0.02)


def main() -> int:
    """Run the command to its end, or until the asking process is gone."""
    lifeline, grace_s = int(sys.argv[1]), float(sys.argv[2])
    command = sys.argv[sys.argv.index("--") + 1 :]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def stop(number: int, frame: object) -> None:
        end_all(grace_s)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)

    def die_with_supervisor() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    child = subprocess.Popen(command, preexec_fn=die_with_supervisor)
    child_fd = os.pidfd_open(child.pid)
    poller = select.poll()
    poller.register(child_fd, select.POLLIN)
    poller.register(lifeline, select.POLLIN | select.POLLHUP)
    ready: set[int] = set()
    while not ready:
        ready = {fd for fd, _ in poller.poll()}
    if child_fd not in ready:
        end_all(grace_s)
        return 128 + signal.SIGTERM
    code = child.wait()
    end_all(grace_s)  # what the command left behind
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
