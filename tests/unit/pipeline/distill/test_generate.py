import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from core.errors import ToolError
from evals.types import Target
from pipeline.distill import generate
from tests.unit.pipeline.distill.jobs import a_config


class Counting(BaseHTTPRequestHandler):
    """Answers with the numbers after the prompt's last token."""

    short = False
    seen: list[dict[str, object]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        last = body["prompt"][-1]
        ids = list(range(last + 1, last + 1 + body["max_tokens"] - self.short))
        answer = json.dumps({"choices": [{"text": "", "token_ids": ids}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def target():
    Counting.seen, Counting.short = [], False
    server = HTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Target(f"http://127.0.0.1:{server.server_port}", "model", Path(), {}, "")
    server.shutdown()
    server.server_close()


def test_the_opening_stays_and_the_teacher_writes_the_rest(target: Target) -> None:
    row = np.array([5, 6, 7, 90, 91, 92], dtype=np.int32)
    config = a_config(data__prompt_tokens=3, data__sampling_temperature=0.8)
    found = generate.continued(target, row, config.data, seed=4)
    assert found.tolist() == [5, 6, 7, 8, 9, 10]
    asked = Counting.seen[0]
    assert (asked["seed"], asked["temperature"], asked["ignore_eos"], asked["max_tokens"]) == (4, 0.8, True, 3)


def test_a_short_answer_is_an_error(target: Target) -> None:
    Counting.short = True
    with pytest.raises(ToolError, match="wrote 2 tokens instead of 3"):
        generate.continued(target, np.arange(6, dtype=np.int32), a_config(data__prompt_tokens=3).data, 0)


def test_parts_that_are_there_are_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PART_ROWS", 4)
    asked: list[int] = []

    def write(number: int) -> np.ndarray:
        asked.append(number)
        if number == 9 and len(asked) < 11:
            raise ToolError("the server died")
        return np.array([number, 2 * number], dtype=np.int32)

    with pytest.raises(ToolError):
        generate.write_parts(10, write, tmp_path)
    found = generate.write_parts(10, write, tmp_path)
    assert found.tolist() == [[number, 2 * number] for number in range(10)]
    assert sorted(asked) == sorted([*range(10), 8, 9])
