"""One piece of heavy work in a process of its own: what to run is data, a launcher runs it and hands back its result.

    job = Job("pipeline.health.worker:work", {"base": ...}, folder, log="health.log")
    measured = LocalLauncher().run(job)

The worker's side is a plain function that takes the payload and returns what JSON can hold; `python -m core.jobs` calls
it. An error that it raises on purpose (`core.errors`) comes back as the error that it was; any other ends with the
log's last lines. Every attempt writes a result file of its own name, which gets the job's name once the process has
ended well: what an earlier attempt left, or still writes, is never taken for this one's.

Libraries keep memory and want processes of their own, and a job may run on another machine: so everything in a `Job` is
data, and its files lie in its folder.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

from core.environments import CODE
from core.errors import ParsimonyError, ToolError
from core.files import read_json, write_json
from core.process import run_logged

STARTED = time.monotonic()
"""In a worker: about when its process began, before its libraries were loaded."""


@dataclass(frozen=True)
class Job:
    """What to run, with what, and where."""

    program: str
    """`package.module:function`, called with the payload; or the path of a script that needs nothing of ours, run as
    `python -P SCRIPT JOB.json RESULT.json`."""
    payload: Mapping[str, object]
    """What JSON can hold, or `core.files.plain` can make so."""
    folder: Path
    """The working directory: job, log and result lie there."""
    log: str = "worker.log"
    job_file: str = "job.json"
    result_file: str = "measured.json"
    python: Path = field(default_factory=lambda: Path(sys.executable))
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those that the launcher has."""
    inherit: bool = True
    """False: `environment` is all that the process gets."""
    gpus: int | None = None
    """How many GPUs it sees at most; None: all that the launcher has."""
    processes: int = 1
    """More than one run below torch's launcher; the first of them has the result."""
    grace_s: float = 5.0
    """Seconds between SIGTERM and SIGKILL where it is ended early."""

    @property
    def name(self) -> str:
        """What messages call it."""
        module, _, function = self.program.partition(":")
        if not function:
            return Path(self.program).name
        return module if function == "work" else f"{module} {function}"


class Launcher(Protocol):
    """Runs jobs somewhere."""

    def run(
        self,
        job: Job,
        *,
        on_line: Callable[[str], None] | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Run a job to its end and return its result.

        Args:
            job: what to run.
            on_line: sees every line of its output soon after it was written.
            meanwhile: called once it has been started, and ends it if it raises.

        Raises:
            UserError: the worker raised it.
            ToolError: the worker failed in another way, or ended without a result.

        """


class LocalLauncher:
    """Runs a job on this machine, below the supervisor: it never outlives us."""

    def run(
        self,
        job: Job,
        *,
        on_line: Callable[[str], None] | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """See `Launcher.run`."""
        job.folder.mkdir(parents=True, exist_ok=True)
        remove_attempts(job)
        job_file, result = job.folder / job.job_file, job.folder / job.result_file
        attempt = result.with_name(f".{result.name}.{uuid.uuid4().hex}")
        write_json(job_file, job.payload)
        log = job.folder / job.log
        try:
            run_logged(
                command_of(job, job_file, attempt),
                name=job.name,
                log=log,
                env=environment_of(job, os.environ),
                cwd=job.folder,
                on_line=on_line,
                meanwhile=meanwhile,
                grace_s=job.grace_s,
            )
        except ToolError:
            if error_file(attempt).exists():
                raise error_of(read_json(error_file(attempt)), job.name) from None
            raise
        if not attempt.exists():
            raise ToolError(f"{job.name} ended without a result", log)
        attempt.replace(result)
        return dict(read_json(result))


LOCAL = LocalLauncher()


def remove_attempts(job: Job) -> None:
    """Remove the results of earlier attempts, whole or not."""
    result = job.folder / job.result_file
    whole = job.folder.glob(f".{result.name}.*")
    parts = job.folder.glob(f"..{result.name}.*")  # `write_atomic` names them so
    for path in [result, *whole, *parts]:
        path.unlink(missing_ok=True)


def command_of(job: Job, job_file: Path, result: Path) -> list[str | Path]:
    """The worker's command line."""
    if ":" not in job.program:
        # -P: the script's own folder must not shadow that environment's packages.
        return [job.python, "-P", job.program, job_file, result]
    below = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}"]
    return [job.python, *(below if job.processes > 1 else []), "-m", "core.jobs", job.program, job_file, result]


def environment_of(job: Job, ours: Mapping[str, str]) -> dict[str, str]:
    """The worker's whole environment."""
    found = {**(ours if job.inherit else {}), **job.environment}
    if ":" in job.program:
        # Only workers of ours: in another environment our folder may hold other versions of that one's packages.
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE), job.environment.get("PYTHONPATH", "")]))
    if job.gpus is not None:
        given = found.get("CUDA_VISIBLE_DEVICES")
        visible = [str(index) for index in range(job.gpus)] if given is None else given.split(",")
        found["CUDA_VISIBLE_DEVICES"] = ",".join(visible[: job.gpus])
    return found


def error_file(result: Path) -> Path:
    """Where a worker writes the error that it raised instead of a result."""
    return result.with_name(f"{result.name}.error")


class ErrorJson(TypedDict):
    """An error as data."""

    kinds: list[tuple[str, str]]
    """Module and name of its classes that are made from a message alone, the most special first."""
    message: str


def error_to_json(error: ParsimonyError) -> ErrorJson:
    """An error as data."""
    kinds = [
        (kind.__module__, kind.__qualname__)
        for kind in type(error).__mro__
        if issubclass(kind, ParsimonyError) and kind.__init__ is Exception.__init__
    ]
    return {"kinds": kinds, "message": str(error)}


def error_of(raw: ErrorJson, name: str) -> ParsimonyError:
    """The error that a worker raised, as the most special of its classes that this process has loaded.

    A class is not imported for it: it may stand beside torch. One that only the worker knows is a failed tool here.
    """
    for module, kind in raw["kinds"]:
        found = getattr(sys.modules.get(module), kind, None)
        if isinstance(found, type) and issubclass(found, ParsimonyError) and found is not ParsimonyError:
            return found(raw["message"])
    return ToolError(f"{name} stopped: {raw['message']}")


class Usage(TypedDict):
    """What a process has used."""

    wall_s: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    """GPU memory that torch allocated; None without a GPU."""


def usage(since: float) -> Usage:
    """What this process has used: seconds since a monotonic time, and peak memory."""
    return {
        "wall_s": time.monotonic() - since,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": peak_device_bytes(),
    }


def peak_device_bytes() -> int | None:
    """Peak GPU memory that torch allocated in this process; None without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())


def main(arguments: Sequence[str]) -> int:
    """The worker's side: `PROGRAM JOB.json RESULT.json`. Returns the exit code."""
    program, job_file, result = arguments[0], Path(arguments[1]), Path(arguments[2])
    module, _, function = program.partition(":")
    is_first = os.environ.get("RANK", "0") == "0"  # of several processes the first one speaks for all
    try:
        measured = getattr(importlib.import_module(module), function)(read_json(job_file))
    except ParsimonyError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        if is_first:
            write_json(error_file(result), error_to_json(error))
        return error.exit_code
    if is_first and measured is not None:
        write_json(result, measured)
    return 0


if __name__ == "__main__":
    # Under its own name it is loaded once, now: a worker's module that asks for `STARTED` gets this moment.
    from core.jobs import main as main_of_module

    sys.exit(main_of_module(sys.argv[1:]))
