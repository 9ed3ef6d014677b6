"""Tags, secrets and approvals: what may run, and what may be seen."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from core.errors import ConfigError, UserError
from core.redact import MASK, RedactingFilter, contains_secret, is_secret_name, redact, redact_text
from finops.controls.approvals import Approvals, subject_hash
from finops.errors import ApprovalRequiredError, TagError
from finops.tags import TagPolicy

TAGS = {"team": "research", "environment": "dev", "model_family": "smollm2", "workload_type": "evaluation"}
SECRETS = {
    "url password": "postgresql://user:hunter2hunter2@db/ledger",
    "token in url": "https://token1234567@host/path",
    "hugging face": "hf_abcdefghijklmnopqrstuvwx",
    "openai": "sk-proj-abcdefghijklmnop",
    "github": "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "google": "AIzaSyA1234567890abcdefghijklmnopqrstu",
    "slack": "https://hooks.slack.com/services/T000/B000/XXXX",
    "bearer": "Authorization: Bearer abcdefgh12345678",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh",
    "assignment": "api_key=verysecretvalue",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----",
}


def test_the_policy_require_lists_every_missing_and_wrong_tag():
    policy = TagPolicy("require", allowed={"team": ("research", "search"), "workload_type": ("evaluation",)})
    with pytest.raises(TagError) as caught:
        policy.check({"team": "reserch", "workload_type": "evaluation"})
    message = str(caught.value)
    assert "did you mean 'research'" in message
    assert "finops.tags.team=search" in message
    assert "model_family: is required" in message
    assert "environment: is required" in message
    assert policy.check(TAGS) == dict(sorted(TAGS.items()))


def test_the_policy_default_fills_what_is_missing():
    assert TagPolicy("default").check({"team": "search", "environment": ""}) == {
        "environment": "dev", "model_family": "unknown", "team": "search", "workload_type": "evaluation",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"finops.tags.policy: 'off'"):
        TagPolicy("off")


@pytest.mark.parametrize("secret", SECRETS.values(), ids=list(SECRETS))
def test_a_secret_is_no_tag(secret):
    with pytest.raises(TagError) as caught:
        TagPolicy().check(TAGS | {"owner": secret})
    assert secret not in str(caught.value)


@pytest.mark.parametrize("secret", SECRETS.values(), ids=list(SECRETS))
def test_planted_secrets_are_redacted_in_every_field(secret):
    config = {"a": secret, "b": [{"c": f"see {secret} there"}], secret: 1, "t": (secret,)}
    shown = json.dumps(redact(config))
    core = max(secret.replace("@", " ").replace(":", " ").replace("=", " ").split(), key=len)
    assert core not in shown
    assert MASK in shown
    assert contains_secret(secret)


@pytest.mark.parametrize(
    "name", ["password", "api_key", "OPENAI_API_KEY", "hf_token", "webhook_url", "client.secret", "smtp-password"]
)
def test_fields_with_a_secrets_name_are_redacted_whatever_they_hold(name):
    assert is_secret_name(name)
    assert redact({name: "short"}) == {name: MASK}


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "num_tokens", "tokenizer", "usd_per_1k_tokens", "input_tokens", "break_even_tokens", "keyboard"],
)
def test_words_of_the_trade_are_not_secrets(name):
    assert redact({name: "plain"}) == {name: "plain"}


def test_values_of_secret_environment_variables_are_redacted():
    environment = {"MY_PASSWORD": "tr0ub4dor", "EDITOR": "nano", "DB": "postgresql://u:correcthorse@db/x"}
    assert redact_text("nano: tr0ub4dor or correcthorse", environment) == f"nano: {MASK} or {MASK}"


def test_ordinary_texts_stay():
    text = "quantize on NVIDIA L4 (useful): 12.3 USD, run 2026-11-01, https://example.org/docs?page=2"
    assert redact_text(text) == text


def test_logs_are_redacted_with_their_arguments_and_tracebacks():
    record = logging.LogRecord("x", logging.INFO, "x", 1, "using %s", (SECRETS["openai"],), None)
    try:
        raise ValueError(SECRETS["github"])
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    RedactingFilter().filter(record)
    text = logging.Formatter().format(record)
    assert SECRETS["openai"] not in text
    assert SECRETS["github"] not in text
    assert "ValueError" in text


def ask(approvals, *, estimate="20", subject="s1", requester="ann", threshold="10"):
    return approvals.require(
        subject=subject, estimate_usd=Decimal(estimate), threshold_usd=Decimal(threshold) if threshold else None,
        summary="a run", requester=requester,
    )  # fmt: skip


def test_a_run_under_the_threshold_needs_nobody(ledger):
    assert ask(Approvals(ledger), estimate="10") is None
    assert ask(Approvals(ledger), threshold=None) is None


def test_an_approved_run_passes_and_any_change_voids_it(ledger):
    approvals = Approvals(ledger)
    with pytest.raises(ApprovalRequiredError, match="approvals approve 1") as caught:
        ask(approvals)
    assert caught.value.exit_code == 3
    with pytest.raises(ApprovalRequiredError):
        ask(approvals)
    assert len(approvals.all()) == 1, "asking again files nothing new"
    approvals.decide(1, approve=True, who="bob", reason="fine")
    assert ask(approvals).decided_by == "bob"
    with pytest.raises(ApprovalRequiredError, match="request 2"):
        ask(approvals, subject="s2")
    assert [step["action"] for step in approvals.trail()] == ["requested", "approved", "used", "requested"]


def test_nobody_approves_their_own_run(ledger):
    approvals = Approvals(ledger)
    with pytest.raises(ApprovalRequiredError):
        ask(approvals)
    with pytest.raises(UserError, match="nobody approves their own"):
        approvals.decide(1, approve=True, who="ann")
    approvals.decide(1, approve=True, who="bob")
    with pytest.raises(UserError, match="bob approved it and cannot run it"):
        ask(approvals, requester="bob")
    assert ("ann", "refused") in [(step["actor"], step["action"]) for step in approvals.trail()]


def test_a_rejected_run_stays_rejected_and_a_decision_is_final(ledger):
    approvals = Approvals(ledger)
    with pytest.raises(ApprovalRequiredError):
        ask(approvals)
    approvals.decide(1, approve=False, who="bob", reason="try 4 bits")
    with pytest.raises(UserError, match="bob rejected this run: try 4 bits"):
        ask(approvals)
    with pytest.raises(UserError, match="rejected already"):
        approvals.decide(1, approve=True, who="eve")
    with pytest.raises(UserError, match="no such request"):
        approvals.decide(9, approve=True, who="eve")


@pytest.mark.parametrize("approve_first", [True, False])
def test_requests_and_approvals_expire(ledger, clock, approve_first):
    approvals = Approvals(ledger, expires_after=timedelta(hours=1))
    with pytest.raises(ApprovalRequiredError):
        ask(approvals)
    if approve_first:
        approvals.decide(1, approve=True, who="bob")
    clock.advance(3601)
    if not approve_first:
        with pytest.raises(UserError, match="expired already"):
            approvals.decide(1, approve=True, who="bob")
    with pytest.raises(ApprovalRequiredError, match="request 2"):
        ask(approvals)


def test_the_subject_is_plan_estimate_and_price_version():
    base = subject_hash({"bits": 4}, {"usd": Decimal("1.0")}, "v1")
    assert base == subject_hash({"bits": 4}, {"usd": Decimal("1.0")}, "v1")
    changed = [
        subject_hash({"bits": 8}, {"usd": Decimal("1.0")}, "v1"),
        subject_hash({"bits": 4}, {"usd": Decimal("1.1")}, "v1"),
        subject_hash({"bits": 4}, {"usd": Decimal("1.0")}, "v2"),
    ]
    assert len({base, *changed}) == 4


def test_the_audit_trail_is_append_only_and_holds_no_secret(ledger):
    approvals = Approvals(ledger)
    with pytest.raises(ApprovalRequiredError):
        ask(approvals)
    approvals.decide(1, approve=True, who="bob", reason=f"key {SECRETS['openai']}")
    assert SECRETS["openai"] not in str(approvals.trail()) + str(approvals.all())
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), ledger.database.write() as connection:
        connection.execute(sa.text("DELETE FROM finops_audit"))
