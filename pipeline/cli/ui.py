"""Open MLflow's own pages on the configured store, with the link to the runs of each recorded model.

    parsimony ui                        http://127.0.0.1:5000
    parsimony ui --port 8080
    parsimony ui model=smollm2-135m     only this model's links

The store is the configured one (`tracking=`); a tracking server has its own pages, and only the links are printed.
"""

from __future__ import annotations

import errno
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from core.command import command
from core.console import say
from core.errors import ConfigError, ToolError, closest
from core.process import POLL_S, ChildProcess
from pipeline.cli.options import config_of, parser
from pipeline.record.store import Recorder
from pipeline.record.view import CHART, TABLE, view_url
from pipeline.serve.engine import LOOPBACK
from pipeline.serve.server import is_healthy

STARTUP_TIMEOUT_S = 120.0


def main(arguments: list[str]) -> int:
    """Run MLflow's server until it is interrupted or terminated; nothing that it started is left."""
    commands = parser("ui", __doc__)
    commands.add_argument("--port", type=int, default=5000, help="port to listen on, on this machine (default: 5000)")
    options = commands.parse(arguments)
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port {options.port}: it must be a port number from 1 to 65535")
    config = config_of(options)
    wanted = config.model.name if any(one.startswith(("model=", "model.")) for one in options.overrides) else None
    tracking, recorder = config.tracking, Recorder(config.tracking)
    models = shown_models(recorder, wanted)
    for model in models:
        recorder.complete_columns(model)
        recorder.share_view(model)
    if tracking.uri.startswith("http"):
        show_links(tracking.uri, recorder, models)
        return 0
    check_port(options.port)
    server = f"http://{LOOPBACK}:{options.port}"
    signal.signal(signal.SIGTERM, _end)
    line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking.uri, "--workers", "1"]
    line += ["--host", LOOPBACK, "--port", str(options.port)]
    with ChildProcess(line, log=Path(config.home) / "logs" / f"mlflow-ui-{options.port}.log") as child:
        wait_until_ready(child, server)
        say(f"MLflow on {tracking.uri}, experiment '{tracking.experiment}', until Ctrl-C")
        show_links(server, recorder, models)
        code = child.wait()
    raise ToolError(f"MLflow's server ended with exit code {code}", child.log)


def shown_models(recorder: Recorder, wanted: str | None) -> list[str]:
    """The recorded models, or the one that is asked for.

    Raises:
        ConfigError: it has no runs.

    """
    known = recorder.models()
    if wanted is None:
        return known
    if wanted not in known:
        listed = ", ".join(known) or "none"
        raise ConfigError(f"model={wanted}: no run is recorded{closest(wanted, known)}; recorded: {listed}")
    return [wanted]


def show_links(server: str, recorder: Recorder, models: list[str]) -> None:
    """Print where each model's runs and their chart are."""
    if not models:
        say(f"no run is recorded yet ({command('model=smollm2-135m quant=int8')}): {server}")
    for model in models:
        say(model)
        say(f"  runs   {view_url(server, recorder.experiment_id, model, TABLE)}")
        say(f"  chart  {view_url(server, recorder.experiment_id, model, CHART)}")


def check_port(port: int) -> None:
    """Check that nobody listens on a port of this machine.

    Raises:
        ConfigError: somebody does, or it is not ours to take.

    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            reason = "it is in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
            raise ConfigError(f"--port {port}: {reason}\n  -> another one: --port {port % 65535 + 1}") from error


def wait_until_ready(child: ChildProcess, server: str) -> None:
    """Wait for the server's first answer.

    Raises:
        ToolError: it ended, or did not answer in time; the message ends with its log's last lines.

    """
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while not is_healthy(server):
        if (code := child.poll()) is not None:
            raise ToolError(f"MLflow's server ended with exit code {code} before it answered", child.log)
        if time.monotonic() > deadline:
            raise ToolError(f"MLflow's server did not answer within {STARTUP_TIMEOUT_S:.0f} s", child.log)
        time.sleep(POLL_S)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
