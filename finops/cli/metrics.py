"""Spend as Prometheus metrics (text exposition format 0.0.4), names under `parsimony_` (OpenCost has others).

    parsimony metrics serve --port 9464          # http://127.0.0.1:9464/metrics
    parsimony metrics print                      # once, to standard output

Figures are read from the ledger at each scrape, at most once per `--cache-s`. A ledger that cannot be read gives
`parsimony_ledger_up 0` and nothing else: a dashboard shows a gap, not an old or free figure.
"""

from __future__ import annotations

from finops.cli.common import action_parser, parser, read
from finops.ledger.ledger import Ledger
from finops.reports.prometheus import collect, render, server


def main(arguments: list[str]) -> int:
    """Run the command line."""
    commands = parser("metrics", __doc__)
    actions = commands.add_subparsers(dest="action", required=True)
    action_parser(actions, "print", "print the metrics once")
    serve = action_parser(actions, "serve", "serve them over HTTP")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=9464)
    serve.add_argument("--cache-s", type=float, default=15.0, help="read the ledger at most this often")
    options = read(commands, arguments)
    if options.action == "print":
        ledger = Ledger(options.ledger, create=False)
        print(render(collect(ledger)), end="")
        return 0
    listening = server(lambda: Ledger(options.ledger, create=False), options.host, options.port, options.cache_s)
    print(f"http://{options.host}:{listening.server_address[1]}/metrics", flush=True)
    with listening:
        listening.serve_forever()
    return 0
