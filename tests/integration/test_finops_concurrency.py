"""The money's invariants with real processes, on SQLite and on a PostgreSQL server that the test starts."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from datetime import timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa

from finops.controls.alerts import AlertDispatcher, WebhookChannel, signature
from finops.controls.budgets import Budgets
from finops.errors import BudgetExceededError, ReservationError
from finops.ledger import schema
from finops.ledger.charges import Rate, Resource, device_charge
from finops.ledger.ledger import Ledger
from finops.ledger.meter import Meter
from finops.ledger.spend import sum_of_charges
from finops.money import to_us

pytestmark = pytest.mark.integration
TAGS = {"team": "research", "environment": "dev", "model_family": "smollm2", "workload_type": "evaluation"}
ONE_USD = Rate(Decimal(1), "v1")
FORK = multiprocessing.get_context("fork")
NUM_PROCESSES = 200


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def postgresql():
    """A PostgreSQL server on loopback with its files in a folder of its own, as a user that is not root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs and not shutil.which("initdb"):
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    folder = programs[-1].parent if programs else Path(shutil.which("initdb")).parent
    home = Path(tempfile.mkdtemp(prefix="finops-postgresql-"))
    who: dict[str, object] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody")
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(home, user.pw_uid, user.pw_gid)
    password, port = secrets.token_urlsafe(16), free_port()
    (home / "password").write_text(password)
    (home / "password").chmod(0o644)
    quiet = {"cwd": home, "stdout": subprocess.DEVNULL, **who}
    subprocess.run(
        [folder / "initdb", "-D", home / "data", "-U", "finops", "-E", "UTF8", "--auth=scram-sha-256",
         f"--pwfile={home / 'password'}"], check=True, **quiet,
    )  # fmt: skip
    settings = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c max_connections=250 -c fsync=off"
    control = [folder / "pg_ctl", "-D", home / "data", "-w", "-t", "60"]
    subprocess.run([*control, "-l", home / "log", "-o", settings, "start"], check=True, **quiet)
    try:
        yield f"postgresql://finops:{password}@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A fresh ledger's URL on each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server = request.getfixturevalue("postgresql")
    name = f"ledger_{secrets.token_hex(4)}"
    engine = sa.create_engine(server.replace("postgresql://", "postgresql+psycopg://") + "/postgres")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


def start_all(target, arguments):
    """Fork a process per argument tuple; they wait for each other before they begin."""
    barrier = FORK.Barrier(len(arguments))
    processes = [FORK.Process(target=_run, args=(target, barrier, *each), daemon=True) for each in arguments]
    for process in processes:
        process.start()
    return processes


def _run(target, barrier, *arguments):
    barrier.wait(120)
    target(*arguments)


def join(processes, timeout_s=240.0):
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
    assert not stuck, f"{len(stuck)} processes did not end"


def reserve_one(url, results, index):
    ledger = Ledger(url)
    try:
        Budgets(ledger).reserve(f"run-{index}", Decimal(1), TAGS, ttl_s=3600)
        results.put("held")
    except BudgetExceededError:
        results.put("rejected")
    ledger.close()


def test_two_hundred_concurrent_reservations_never_pass_the_limit(url):
    ledger = Ledger(url)
    budgets = Budgets(ledger)
    budgets.define("team", limit_usd=Decimal("50.99"), team="research")
    budgets.define("everything", limit_usd=Decimal(80))
    ledger.close()
    results = FORK.SimpleQueue()
    join(start_all(reserve_one, [(url, results, index) for index in range(NUM_PROCESSES)]))
    answers = [results.get() for _ in range(NUM_PROCESSES)]
    assert (answers.count("held"), answers.count("rejected")) == (50, 150)
    assert {item.name: item.reserved_usd for item in budgets.status()} == {"team": 50, "everything": 50}
    ledger.close()


def work_until_killed(url, seed):
    """Runs that reserve, charge a part of it, settle or release, for ever."""
    rng = random.Random(seed)
    ledger = Ledger(url)
    budgets = Budgets(ledger)
    number = 0
    while True:
        number += 1
        usd = Decimal(rng.randint(1, 400)) / 100
        try:
            reservation = budgets.reserve(f"run-{seed}-{number}", usd, TAGS, ttl_s=3)
        except BudgetExceededError:
            time.sleep(0.01)
            continue
        with contextlib.suppress(ReservationError):
            for part in range(rng.randint(0, 3)):
                reservation.heartbeat()
                ledger.record(charge_of(ledger, f"{seed}-{number}-{part}", usd / 8, reservation.id))
            (reservation.release if rng.random() < 0.2 else reservation.settle)()


def charge_of(ledger, name, usd, hold_id=None):
    now = ledger.clock()
    return device_charge(
        run_id="r", stage="s", resource=Resource(f"host-{name}", "cpu"), rate=ONE_USD, tags=TAGS, start=now, end=now,
        quantity_micro=int(usd * 10**6), hold_id=hold_id,
    )  # fmt: skip


def test_killed_runs_leave_the_budget_whole(url):
    """SIGKILL at random moments: the limit is kept at every moment, and no spend is lost or counted twice."""
    ledger = Ledger(url)
    budgets = Budgets(ledger)
    budgets.define("everything", limit_usd=Decimal(30), period="total")
    ledger.close()
    processes = start_all(work_until_killed, [(url, seed) for seed in range(12)])
    rng, looks, end = random.Random(7), 0, time.monotonic() + 6
    try:
        while time.monotonic() < end:
            (status,) = budgets.status()
            assert status.spent_usd + status.reserved_usd <= status.limit_usd
            looks += 1
            alive = [process for process in processes if process.is_alive()]
            if rng.random() < 0.1 and len(alive) > 4:
                os.kill(rng.choice(alive).pid, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
        join(processes)
    assert looks > 20
    assert sum(process.exitcode == -signal.SIGKILL for process in processes) == len(processes)
    time.sleep(3.1)  # the killed runs' reservations expire
    (status,) = budgets.status()
    assert status.reserved_usd == 0
    assert status.spent_usd == ledger.total_usd() > 0
    with ledger.database.read() as connection:
        row = connection.execute(sa.select(schema.budgets)).one()
        assert sum_of_charges(connection, row, 0, to_us(ledger.clock() + timedelta(days=1))) == int(
            status.spent_usd * 10**12
        )
    ledger.close()


def hold_a_stage(url, index, started):
    ledger = Ledger(url)
    resource = Resource(f"gpu-{index}", "NVIDIA L4", "GPU")
    with Meter(
        ledger,
        run_id=f"run-{index}",
        stage="distill",
        resource=resource,
        rate=ONE_USD,
        tags=TAGS,
        heartbeat_every_s=0.05,
    ) as meter:
        time.sleep(0.2)
        meter.checkpoint()
        started.put(index)
        time.sleep(600)


def test_killed_stages_are_charged_once_at_the_next_start(url):
    ledger = Ledger(url)
    ledger.close()
    started = FORK.SimpleQueue()
    begun = time.monotonic()
    processes = start_all(hold_a_stage, [(url, index, started) for index in range(6)])
    for _ in processes:
        started.get()
    time.sleep(0.3)
    lived_s = time.monotonic() - begun
    for process in processes:
        process.kill()
    join(processes)
    time.sleep(0.2)
    join(start_all(recover, [(url,) for _ in range(8)]))
    charges = ledger.charges()
    assert {charge.run_id for charge in charges} == {f"run-{index}" for index in range(6)}
    assert {(charge.status, charge.work) for charge in charges} == {("killed", "useful"), ("killed", "lost")}
    assert len(charges) == 12, "each once, cut at its checkpoint"
    held_s = float(sum(charge.device_hours for charge in charges)) * 3600
    assert 6 * 0.4 < held_s < 6 * (lived_s + 0.2)
    ledger.close()


def recover(url):
    Ledger(url).recover(grace_s=0)


def spend_one(url, index, webhook, secret):
    ledger = Ledger(url)
    ledger.record(charge_of(ledger, str(index), Decimal(1)))
    AlertDispatcher(ledger, [WebhookChannel(webhook, secret)]).deliver()


def test_alerts_arrive_once_at_a_webhook(url):
    posts: list[tuple[dict[str, str], bytes]] = []
    refuse = [1]

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fail = bool(refuse) and refuse.pop()
            if not fail:
                posts.append((dict(self.headers), body))
            self.send_response(503 if fail else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    webhook, secret = f"http://127.0.0.1:{server.server_address[1]}/hook", secrets.token_hex(16)
    ledger = Ledger(url)
    Budgets(ledger).define("team", limit_usd=Decimal(20), team="research")
    ledger.close()
    join(start_all(spend_one, [(url, index, webhook, secret) for index in range(40)]))
    dispatcher = AlertDispatcher(ledger, [WebhookChannel(webhook, secret)])
    deadline = time.monotonic() + 30
    while len(posts) < 2 and time.monotonic() < deadline:  # the refused one is due again after two seconds
        dispatcher.deliver()
        time.sleep(0.2)
    dispatcher.deliver()
    server.shutdown()
    server.server_close()
    bodies = [json.loads(body) for _, body in posts]
    assert sorted(body["threshold_percent"] for body in bodies) == [80, 100]
    assert len({headers["Idempotency-Key"] for headers, _ in posts}) == 2
    for headers, body in posts:
        expected = signature(secret, headers["X-Parsimony-Timestamp"], body)
        assert headers["X-Parsimony-Signature"] == f"sha256={expected}"
        assert secret not in body.decode()
    assert ledger.total_usd() == 40
    ledger.close()


def record_many(url, seed):
    ledger = Ledger(url)
    order = list(range(60))
    random.Random(seed).shuffle(order)
    for index in order:
        start = ledger.clock().replace(year=2026, month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
        ledger.record(
            device_charge(
                run_id="r", stage="s", resource=Resource(f"host-{index}", "cpu"), rate=ONE_USD, tags=TAGS,
                start=start + timedelta(hours=index), end=start + timedelta(hours=index + 1),
            )
        )  # fmt: skip
    ledger.close()


def test_the_same_charges_from_many_processes_are_recorded_once(url):
    ledger = Ledger(url)
    Budgets(ledger).define("all", limit_usd=Decimal(1000), period="total")
    ledger.close()
    join(start_all(record_many, [(url, seed) for seed in range(6)]))
    assert len(ledger.charges()) == 60
    assert ledger.total_usd() == 60
    assert Budgets(ledger).status()[0].spent_usd == 60
    ledger.close()


def open_new(url, results):
    try:
        Ledger(url).close()
        results.put("")
    except Exception as error:
        results.put(repr(error))


def test_many_processes_open_a_new_ledger_at_once(url):
    results = FORK.SimpleQueue()
    join(start_all(open_new, [(url, results) for _ in range(12)]))
    assert [results.get() for _ in range(12)] == [""] * 12


def test_postgresql_refuses_changes_to_charges(postgresql):
    ledger = Ledger(f"{postgresql}/postgres")
    ledger.record(charge_of(ledger, "x", Decimal(1)))
    for statement in (
        "UPDATE finops_charges SET billed_pico = 0",
        "DELETE FROM finops_charges",
        "TRUNCATE finops_charges",
    ):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), ledger.database.write() as connection:
            connection.execute(sa.text(statement))
    assert ledger.total_usd() == 1
    ledger.close()
