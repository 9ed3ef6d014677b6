"""Open MLflow's own UI on the configured store.

python -m pipeline.cli.ui                      http://127.0.0.1:5000
python -m pipeline.cli.ui +port=8080
"""

from __future__ import annotations

import subprocess
import sys

from core.errors import ConfigError


def main(arguments: list[str]) -> int:
    """Run `mlflow ui` until it is interrupted."""
    from core.console import say
    from pipeline.cli.app import command_config
    from pipeline.record.store import Recorder

    port = next((argument.partition("=")[2] for argument in arguments if argument.startswith("+port=")), "5000")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"+port={port}: must be a port number from 1 to 65535")
    config = command_config([argument for argument in arguments if not argument.startswith("+port=")], __doc__)
    tracking = config.tracking
    if tracking.uri.startswith("http"):
        say(f"this store has its own UI: {tracking.uri}")
        return 0
    Recorder(tracking)
    say(f"MLflow on {tracking.uri}: http://127.0.0.1:{port} (experiment '{tracking.experiment}')")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracking.uri, "--port", port]
    return subprocess.call(command)


if __name__ == "__main__":
    from pipeline.cli.app import run_command

    sys.exit(run_command(main, sys.argv[1:]))
