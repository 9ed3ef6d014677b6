"""vLLM's OpenAI server as a context manager that yields a Target.

The server runs in the serving environment, on a free port of the loopback interface, below a supervisor that ends it
with this process, however this process ends. Its log is kept. It starts on first use: a run whose measurements are all
in the store never starts one.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from urllib.parse import urlparse

from core.errors import ToolError
from core.process import ChildProcess
from evals.types import Target
from pipeline.config import EngineConfig
from pipeline.serve.engine import (
    LOOPBACK,
    MODEL_NAME,
    engine_settings,
    server_command,
    server_environment,
    speed_digest,
    target_digest,
)
from pipeline.types import Artifact, Machine

POLL_S = 0.2


class ServedModel(AbstractContextManager["ServedModel"]):
    """A checkpoint and its engine; `target()` starts the server once and waits until it answers."""

    def __init__(
        self,
        artifact: Artifact,
        engine: EngineConfig,
        machine: Machine,
        python: Path,
        log: Path,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._artifact, self._engine, self._machine, self._python = artifact, engine, machine, python
        self.log = log
        self._on_start = on_start
        self._child: ChildProcess | None = None
        self._target: Target | None = None
        self._started = 0.0
        self.startup_s: float | None = None

    @property
    def digest(self) -> str:
        """The digest of the target's answers: known before the server runs."""
        return target_digest(self._artifact, self._engine, self._machine, self._python)

    @property
    def speed_digest(self) -> str:
        """The digest of the target's speed: known before the server runs."""
        return speed_digest(self._artifact, self._engine, self._machine, self._python)

    def target(self) -> Target:
        """The served model, started if need be, and answering.

        Raises:
            ToolError: the server died, or did not answer in time; the message ends with its log's last lines.

        """
        target = self.launch()
        self.wait()
        return target

    def launch(self) -> Target:
        """The served model, started if need be; it answers after `wait`."""
        if self._target is None:
            self._on_start()
            self._started = time.monotonic()
            port = free_port()
            command = server_command(self._artifact, self._engine, self._machine, self._python, port)
            environment = server_environment(self._engine, self._machine)
            self._child = ChildProcess(command, log=self.log, env=environment)
            url = f"http://{LOOPBACK}:{port}"
            settings = engine_settings(self._engine)
            self._target = Target(url, MODEL_NAME, self._artifact.path, settings, self.digest, self.speed_digest)
        return self._target

    def wait(self) -> None:
        """Wait until a launched server answers.

        Raises:
            ToolError: the server died, or did not answer in time; the message ends with its log's last lines.

        """
        assert self._child is not None, "launch it first"
        assert self._target is not None, "launch it first"
        if self.startup_s is None:
            wait_until_ready(self._child, self._target.url, self._engine.startup_timeout_s)
            self.startup_s = time.monotonic() - self._started

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server."""
        if self._child is not None:
            self._child.stop()


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_until_ready(child: ChildProcess, url: str, timeout_s: float) -> None:
    """Wait for the server's first healthy answer.

    Raises:
        ToolError: the server ended, or the time ran out.

    """
    deadline = time.monotonic() + timeout_s
    while not is_healthy(url):
        code = child.poll()
        if code is not None:
            raise ToolError(f"vLLM's server ended with exit code {code} before it answered", child.log)
        if time.monotonic() > deadline:
            child.stop()
            raise ToolError(
                f"vLLM's server did not answer within {timeout_s:.0f} s (engine.startup_timeout_s) and was ended",
                child.log,
            )
        time.sleep(POLL_S)


def is_healthy(url: str) -> bool:
    """Whether the server answers its health check."""
    address = urlparse(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def keep_log(log: Path, folder: Path) -> None:
    """Keep the server's log so far beside a stage's results."""
    shutil.copyfile(log, folder / "vllm.log")
