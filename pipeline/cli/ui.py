"""Open MLflow's own pages on the configured store.

    parsimony ui                    http://127.0.0.1:5000
    parsimony ui --port 8080

The store is the configured one (`tracking=`); a tracking server has its own pages.
"""

from __future__ import annotations

import subprocess
import sys

from core.console import say
from core.errors import ConfigError
from pipeline.cli.options import config_of, parser
from pipeline.record.store import Recorder


def main(arguments: list[str]) -> int:
    """Run `mlflow ui` until it is interrupted."""
    commands = parser("ui", __doc__)
    commands.add_argument("--port", type=int, default=5000, help="port to listen on, on this machine (default: 5000)")
    options = commands.parse(arguments)
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port {options.port}: it must be a port number from 1 to 65535")
    tracking = config_of(options).tracking
    if tracking.uri.startswith("http"):
        say(f"this store has its own UI: {tracking.uri}")
        return 0
    Recorder(tracking)
    say(f"MLflow on {tracking.uri}: http://127.0.0.1:{options.port} (experiment '{tracking.experiment}')")
    place = ["--backend-store-uri", tracking.uri, "--port", str(options.port)]
    return subprocess.call([sys.executable, "-m", "mlflow", "ui", *place])
