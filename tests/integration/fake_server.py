"""An OpenAI completions server whose answers are a fixed function of the prompt: fast, and the same every time.

A loglikelihood request (`echo`, token ids) gets log-probabilities that are hashes of (prefix, token), shifted for
tokens that `favours` names; a generation request gets `writes(prompt)`. `failing` prompts get an error.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeServer:
    """A context manager; `num_requests` counts what was asked."""

    def __init__(
        self,
        seed: int = 0,
        noise: float = 0.0,
        writes: Callable[[str], str] = lambda prompt: "",
        failing: str | None = None,
    ) -> None:
        self.seed, self.noise, self.writes, self.failing = seed, noise, writes, failing
        self.num_requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = outer.reply(body)
                data = json.dumps(reply).encode()
                self.send_response(200 if "choices" in reply else 500)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def reply(self, body: dict) -> dict:
        prompts = body["prompt"]
        prompts = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
        self.num_requests += len(prompts)
        if self.failing is not None and any(self.failing in str(prompt) for prompt in prompts):
            return {"error": "no answer"}
        if not body.get("echo"):
            return {"choices": [{"index": i, "text": self.writes(prompt)} for i, prompt in enumerate(prompts)]}
        return {"choices": [self._scored(i, prompt) for i, prompt in enumerate(prompts)]}

    def _scored(self, index: int, tokens: list[int]) -> dict:
        logprobs = [self._logprob(tokens[:end], token) for end, token in enumerate([*tokens, 0])]
        tops = [{"x": one + 0.1} for one in logprobs]
        return {"index": index, "text": "", "logprobs": {"token_logprobs": logprobs, "top_logprobs": tops}}

    def _logprob(self, prefix: list[int], token: int) -> float:
        return -5 * unit(0, prefix, token) - self.noise * unit(1 + self.seed, prefix, token)

    def __enter__(self) -> "FakeServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
