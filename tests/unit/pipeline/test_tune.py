import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from core.errors import ConfigError, ToolError
from evals.cost.token_cost import cost_report
from evals.load.scenario import LoadScenario, PointSpec, SloSearch, Sweep, TraceReplay
from evals.types import LoadPoint, LoadReport, Price, ThetaSlo
from pipeline.cli.compose import CONF, run_config
from pipeline.cli.tune import main, presets
from pipeline.config import EngineConfig, ModelConfig, RunConfig
from pipeline.serve.checks import check_engine
from pipeline.serve.engine import ROUNDING, SPECULATION, SPEED_ONLY
from pipeline.serve.search import (
    FAILED,
    INFEASIBLE,
    MEASURED,
    NOISE,
    STOPPED,
    Measurement,
    Space,
    Trial,
    against_base,
    first_scenario,
    search,
    slack,
    space_for,
    winner,
)
from pipeline.tune import choice_file, max_concurrency
from tests.unit.pipeline.shapes import FACTS

pytest.importorskip("optuna")
PRICE = Price("l4-24gb", Decimal("0.7"), Decimal("0.95"), "on_demand", "test", "2026")
SPACE = space_for("cuda", 64)
POINT = PointSpec(128, 32, 16, concurrency=8)


def a_measurement(rate: float, num_repeats: int = 3) -> Measurement:
    repeats = tuple({"req_per_s": rate * f, "total_tok_per_s": 160 * rate * f} for f in (1.0, 1.01, 0.99)[:num_repeats])
    load = LoadReport("test", (LoadPoint("c8-128x32", 8, 128, 32, repeats, 0),))
    return Measurement(cost_report(load, PRICE), load)


@dataclass
class FakeServers:
    """Servers whose speed is a function of the engine; they remember what was asked of them."""

    rate: Callable[[EngineConfig], float]
    started: list[EngineConfig] = field(default_factory=list)
    measured: list[EngineConfig] = field(default_factory=list)
    num_running: int = 0

    @contextmanager
    def serve(self, engine: EngineConfig) -> Iterator["FakeServer"]:
        self.started.append(engine)
        self.num_running += 1
        assert self.num_running == 1, "one server at a time"
        try:
            yield FakeServer(self, engine)
        finally:
            self.num_running -= 1

    def search(self, num_trials: int = 12, seed: int = 0, space: Space = SPACE) -> list[Trial]:
        base = EngineConfig()
        return search(self.serve, base, space, [], num_trials=num_trials, seed=seed, slack=NOISE)


@dataclass
class FakeServer:
    servers: FakeServers
    engine: EngineConfig

    def probe(self) -> Measurement:
        return a_measurement(self.servers.rate(self.engine), num_repeats=1)

    def measure(self) -> Measurement:
        self.servers.measured.append(self.engine)
        return a_measurement(self.servers.rate(self.engine))


def speed(engine: EngineConfig) -> float:
    """Best at 32 sequences and 4096 tokens, slower with speculation."""
    rate = 10.0 if engine.max_num_seqs == 32 else 6.0
    rate *= 1.5 if engine.max_num_batched_tokens == 4096 else 1.0
    return rate * (0.7 if engine.speculative else 1.0)


def test_it_finds_a_cheaper_engine_than_it_started_from() -> None:
    servers = FakeServers(speed)
    trials = servers.search(num_trials=30)
    best = winner(trials)
    assert best is not None
    assert (best.engine.max_num_seqs, best.engine.max_num_batched_tokens, best.engine.speculative) == (32, 4096, None)
    found = against_base(trials, best)
    assert found is not None
    assert found.ratio == pytest.approx(6 / 15, rel=1e-9)
    assert found.verdict == "cheaper"


def test_every_engine_is_served_once_and_the_base_first() -> None:
    servers = FakeServers(speed)
    trials = servers.search(num_trials=20)
    assert len(servers.started) == len(trials) == 20
    assert servers.started[0] == EngineConfig()
    keys = [repr(vars(engine)) for engine in servers.started[1:]]
    assert len(set(keys)) == len(keys)


def test_hopeless_engines_are_stopped_after_the_probe() -> None:
    servers = FakeServers(speed)
    trials = servers.search(num_trials=20)
    stopped = [trial for trial in trials if trial.outcome == STOPPED]
    assert stopped
    assert len(servers.measured) == len(trials) - len(stopped)
    best = winner(trials)
    assert best is not None
    assert best.usd_per_1k_tokens is not None
    for trial in stopped:
        assert trial.bound_usd_per_1k_tokens is not None
        assert trial.bound_usd_per_1k_tokens > best.usd_per_1k_tokens
        assert trial.usd_per_1k_tokens is None
    assert not any(speed(trial.engine) > speed(best.engine) for trial in stopped)


def test_a_probe_within_the_noise_of_the_best_is_measured_whole() -> None:
    servers = FakeServers(lambda engine: 10.0 if engine.max_num_seqs == 256 else 9.5)
    trials = servers.search(num_trials=8)
    assert {trial.outcome for trial in trials} == {MEASURED}


def test_the_same_seed_takes_the_same_way() -> None:
    ways = [[trial.params for trial in FakeServers(speed).search(seed=seed)] for seed in (3, 3, 4)]
    assert ways[0] == ways[1]
    assert ways[0] != ways[2]


def test_a_small_space_ends_when_it_is_exhausted() -> None:
    space = Space({"enable_prefix_caching": (True, False)}, {})
    trials = FakeServers(speed).search(num_trials=10, space=space)
    assert len(trials) == 3  # the base and two points


def test_a_server_that_fails_is_one_trial_and_not_the_end() -> None:
    def broken(engine: EngineConfig) -> float:
        if engine.speculative:
            raise ToolError("vLLM's server ended with exit code 1\n  | details")
        return speed(engine)

    servers = FakeServers(broken)
    trials = servers.search(num_trials=12)
    failed = [trial for trial in trials if trial.outcome == FAILED]
    assert failed
    assert all(trial.reason == "vLLM's server ended with exit code 1" for trial in failed)
    assert servers.num_running == 0
    best = winner(trials)
    assert best is not None
    assert best.engine.speculative is None


def test_when_no_server_starts_the_last_error_is_raised() -> None:
    def broken(engine: EngineConfig) -> float:
        raise ToolError("no memory")

    with pytest.raises(ToolError, match="no memory"):
        FakeServers(broken).search(num_trials=3)


def test_an_engine_that_misses_the_objective_never_wins() -> None:
    theta = ThetaSlo(2.0, 0.2, None, 1.0, 3, "no tested rate meets the objective")

    class Missing(FakeServer):
        def measure(self) -> Measurement:
            found = a_measurement(100.0)
            load = replace(found.load, theta_slo=theta)
            return Measurement(cost_report(load, PRICE), load) if self.engine.speculative else super().measure()

    servers = FakeServers(speed)

    @contextmanager
    def serve(engine: EngineConfig) -> Iterator[FakeServer]:
        yield Missing(servers, engine)

    trials = search(serve, EngineConfig(speculative="ngram"), SPACE, [], num_trials=10, seed=0, slack=NOISE)
    assert trials[0].outcome == INFEASIBLE
    assert "no tested rate meets" in trials[0].reason
    best = winner(trials)
    assert best is not None
    assert best.engine.speculative is None
    assert winner(trials[:1]) is None


def test_presets_are_tried_before_anything_is_proposed() -> None:
    servers = FakeServers(speed)
    engines = presets()
    trials = search(servers.serve, EngineConfig(), SPACE, engines, num_trials=6, seed=0, slack=NOISE)
    playbook = next(trial for trial in trials if trial.params.get("max_num_batched_tokens") == 8192)
    assert playbook.params["max_num_seqs"] == 64, "the load has 64 requests in flight"
    assert any(trial.params.get("speculative") == "ngram" for trial in trials[1:5]), "the latency preset"


def test_only_settings_that_keep_the_model_are_searched() -> None:
    of_speculation = {key for keys in SPECULATION.values() for key in keys}
    for device in ("cpu", "cuda"):
        space = space_for(device, 1000)
        assert {*space.values, *space.of_speculation} <= {*SPEED_ONLY, *ROUNDING, *of_speculation}


def test_every_point_of_the_space_is_an_engine_that_vllm_takes() -> None:
    space = space_for("cuda", 1000)
    for seqs in space.values["max_num_seqs"]:
        for tokens in space.values["max_num_batched_tokens"]:
            engine = EngineConfig(max_num_seqs=seqs, max_num_batched_tokens=tokens, speculative="ngram")
            assert check_engine(engine, FACTS) == []
    assert max(space_for("cpu", 8).values["max_num_seqs"]) == 8
    assert "gpu_memory_utilization" not in space_for("cpu", 8).values


def test_the_probe_is_one_repeat_of_the_highest_load() -> None:
    points = LoadScenario(
        "points", (replace(POINT, concurrency=1), POINT, replace(POINT, input_tokens=9)), mix=(128, 32)
    )
    look = first_scenario(points)
    assert (look.points, look.num_repeats, look.search) == ((POINT,), 1, None)
    slo = LoadScenario("slo", search=SloSearch(128, 64, slo_ttft_p99_s=2.0, capacity_concurrency=16))
    assert first_scenario(slo).points[0].concurrency == 16
    assert slack(slo) > slack(points)
    sweep = LoadScenario("sweep", sweep=Sweep(128, 64, max_concurrency=32))
    assert max_concurrency(sweep) == 32
    with pytest.raises(ConfigError, match="load=trace: a replayed trace has no highest load"):
        max_concurrency(LoadScenario("trace", trace=TraceReplay("x.csv")))


def test_the_winners_file_is_a_choice_of_the_engine_group_with_its_evidence() -> None:
    servers = FakeServers(speed)
    trials = servers.search(num_trials=12)
    best = winner(trials)
    assert best is not None
    config = RunConfig(model=ModelConfig(name="tiny"))
    now = datetime(2026, 11, 1, tzinfo=UTC)
    text = choice_file("tiny-l4-24gb", best, trials, PRICE, config, LoadScenario("slo", (POINT,)), now)
    settings = yaml.safe_load(text)
    assert EngineConfig(**settings) == replace(best.engine, name="tuned/tiny-l4-24gb")
    assert f"{best.usd_per_1k_tokens:.4g} USD per 1k tokens" in text
    assert "0.7-0.95 USD per hour (on_demand), busy 0.4 of the time" in text
    assert text.count("| stopped early |") == sum(trial.outcome == STOPPED for trial in trials)
    assert "by one start of each." in text, "which shows nothing of the next start"
    only = choice_file("tiny", trials[0], trials[:1], PRICE, config, LoadScenario("slo", (POINT,)), now)
    assert "No engine was cheaper than the one that the search started from." in only


def test_a_bad_number_of_trials_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        main(["model=smollm2-135m-q4_1", "--num-trials", "0"])


def test_hydra_finds_the_winners_file_as_a_choice(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    best = Trial(0, EngineConfig(dtype="float32", max_num_seqs=32, speculative="ngram"), {}, MEASURED, Decimal("0.01"))
    config = RunConfig(model=ModelConfig(name="tiny"))
    text = choice_file("tiny-cpu", best, [best], PRICE, config, LoadScenario("slo", (POINT,)), datetime.now(UTC))
    (folder / "engine" / "tuned").mkdir()
    (folder / "engine" / "tuned" / "tiny-cpu.yaml").write_text(text)
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        engine = run_config(compose("config", overrides=["engine=tuned/tiny-cpu", "home=/nowhere"])).engine
    assert engine == replace(best.engine, name="tuned/tiny-cpu")
