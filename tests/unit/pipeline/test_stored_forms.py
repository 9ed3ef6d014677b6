"""What earlier versions stored is still read: a load's facts lie in one flat object, in stages and evidence alike."""

import json

from core.files import plain
from evals.json_form import from_json
from evals.types import LoadConditions, LoadReport

STORED_LOAD = """{
  "machine": {
    "device": "cpu", "device_name": "AMD EPYC", "num_cpus": 2, "num_devices": 1,
    "engine": {"dtype": "float32", "max_model_len": 2048, "enforce_eager": true, "speculative": null},
    "oldest_result_at": "2026-11-26T06:18:04+00:00", "startup_s": 21.4, "a_fact_that_nobody_reads": 1
  },
  "mix": [128, 32],
  "points": [{
    "concurrency": 8, "counters": [{"num_preemptions": 0.0, "joules": null}], "input_tokens": 128,
    "missing": {"joules": "no energy counter"}, "name": "c8-128x32", "num_errors": 0, "num_requests": 16,
    "num_timeouts": 0, "output_tokens": 32, "prefix_share": 0.0, "repeats": [{"output_tok_per_s": 38.9}],
    "request_rate": null, "trace": null
  }],
  "scenario": "quick",
  "theta_slo": null
}"""


def test_a_stored_load_is_read() -> None:
    report = from_json(LoadReport, json.loads(STORED_LOAD))
    assert report.machine == LoadConditions(
        device="cpu",
        device_name="AMD EPYC",
        num_devices=1,
        num_cpus=2,
        engine={"dtype": "float32", "max_model_len": 2048, "enforce_eager": True, "speculative": None},
        startup_s=21.4,
        oldest_result_at="2026-11-26T06:18:04+00:00",
    )
    assert report.points[0].counters == ({"num_preemptions": 0.0, "joules": None},)
    assert from_json(LoadReport, json.loads(json.dumps(plain(report)))) == report


def test_a_report_keeps_the_stored_names() -> None:
    stored = json.loads(STORED_LOAD)
    stored["machine"].pop("a_fact_that_nobody_reads")
    written = plain(from_json(LoadReport, stored))
    assert written["machine"] == stored["machine"] | {"trace_file": None, "trace_requests_passed_over": None}
    assert written.keys() == stored.keys()


def test_a_load_without_facts_is_read() -> None:
    """As reports were before machines were noted: nothing is known, and nothing is zero."""
    stored = json.loads(STORED_LOAD) | {"machine": {}}
    machine = from_json(LoadReport, stored).machine
    assert machine.startup_s is None
    assert machine == LoadConditions()
