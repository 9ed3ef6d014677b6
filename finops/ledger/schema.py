"""The ledger's tables (SQLAlchemy Core). The Alembic migrations create them; a test checks that the two agree.

    charges         append-only (a trigger refuses UPDATE and DELETE); corrections are rows of their own
    open_charges    stages that use a machine now; a dead one is found by its heartbeat and charged
    budgets, budget_periods, holds, hold_budgets        limits, spend so far, reservations
    alerts, deliveries                                  each threshold once per budget and period; an outbox
    approvals, audit                                    who allowed what; append-only trail
    commitments, stage_runs, estimates, promotions      what reports and estimates are made of
    comparisons, declared_rules, attempts               what an error level was spent on; the latter two append-only

Units: `*_pico` 1e-12 of a currency, `*_micro` 1e-6 of a unit, `*_nano` 1e-9 of a currency per unit, `*_us` microseconds
since 1970 UTC, `month` yyyymm, `day` yyyymmdd. All names begin with `finops_`: one database can have MLflow too.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0002"
"""The schema revision that this code needs."""
VERSION_TABLE = "finops_alembic_version"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite makes a row id of an INTEGER primary key only; elsewhere it is 64 bits wide.
_BigId = BigInteger().with_variant(Integer(), "sqlite")


def _text(name: str, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _big(name: str, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


charges = Table(
    "finops_charges",
    metadata,
    Column("id", _BigId, primary_key=True, autoincrement=True),
    Column("key", String(64), nullable=False, unique=True),
    # FOCUS category (Usage | Purchase | Adjustment | Credit | Tax), Correction or null, and the corrected charge's key.
    _text("charge_category"),
    _text("charge_class", True),
    Column("corrects", String(64), nullable=True),
    _text("description"),
    # Who and what: run, stage, how it ended, and whether the work was useful, lost, idle or unused.
    _text("run_id"),
    _text("stage"),
    _text("status"),
    _text("work"),
    _text("meter"),
    _text("provider"),
    _text("resource_id"),
    _text("resource_type"),
    _text("accelerator"),
    _text("region"),
    Column("num_devices", Integer, nullable=False),
    _text("mig_profile", True),
    _text("purchase_option"),
    _text("commitment_id", True),
    _text("commitment_status", True),
    # When.
    _big("start_us"),
    _big("end_us"),
    Column("month", Integer, nullable=False),
    Column("day", Integer, nullable=False),
    _big("created_us"),
    # How much.
    _big("quantity_micro", True),
    _text("pricing_unit", True),
    # Device time held, also where the quantity is another one; 0 for purchases, tokens and corrections.
    _big("device_micro"),
    _big("consumed_micro", True),
    _big("list_price_nano", True),
    _big("contracted_price_nano", True),
    _big("list_usd_nano", True),
    _big("contracted_usd_nano", True),
    _text("price_version"),
    _text("currency"),
    _text("fx_rate"),
    _text("fx_date", True),
    _big("list_pico"),
    _big("contracted_pico"),
    _big("billed_pico"),
    _big("effective_pico"),
    _big("effective_usd_pico"),
    # For whom.
    _text("team"),
    _text("environment"),
    _text("model_family"),
    _text("workload_type"),
    _text("tags"),
    # What it yielded, where measured.
    _text("model_id", True),
    _big("input_tokens", True),
    _big("output_tokens", True),
    _big("num_requests", True),
    _big("busy_micro", True),
    Column("hold_id", String(32), nullable=True),
    CheckConstraint("end_us >= start_us", name="period"),
    CheckConstraint("(quantity_micro IS NULL) = (pricing_unit IS NULL)", name="unit"),
    CheckConstraint("(charge_class IS NULL) OR charge_class = 'Correction'", name="class"),
)
# Covers showback: one ordered pass over the index, no row is read and nothing is sorted.
CUBE = ("team", "month", "environment", "model_family", "workload_type", "accelerator", "purchase_option", "work")
Index("ix_finops_charges_cube", *[charges.c[name] for name in (*CUBE, "day", "device_micro", "effective_usd_pico")])
Index("ix_finops_charges_run_id", charges.c.run_id)
Index("ix_finops_charges_start_us", charges.c.start_us)

open_charges = Table(
    "finops_open_charges",
    metadata,
    Column("id", String(32), primary_key=True),
    _text("run_id"),
    _text("stage"),
    _text("terms"),
    _big("start_us"),
    _big("heartbeat_us"),
    _big("heartbeat_every_us"),
    _big("checkpoint_us", True),
    _text("host"),
    Column("pid", Integer, nullable=False),
    Column("hold_id", String(32), nullable=True),
    _text("state"),
    Index("ix_finops_open_charges_state", "state"),
)

budgets = Table(
    "finops_budgets",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    _text("team", True),
    _text("environment", True),
    _text("model_family", True),
    _text("period"),
    _big("limit_pico"),
    _big("created_us"),
    CheckConstraint("limit_pico >= 0", name="limit"),
)

budget_periods = Table(
    "finops_budget_periods",
    metadata,
    Column("budget_id", Integer, ForeignKey("finops_budgets.id"), primary_key=True),
    Column("period_start_us", BigInteger, primary_key=True),
    _big("spent_pico"),
)

holds = Table(
    "finops_holds",
    metadata,
    Column("id", String(32), primary_key=True),
    _text("run_id"),
    _big("amount_pico"),
    _big("used_pico"),
    _text("state"),
    _big("created_us"),
    _big("expires_us"),
    _big("ttl_us"),
    CheckConstraint("amount_pico >= 0", name="amount"),
    Index("ix_finops_holds_state", "state"),
)

hold_budgets = Table(
    "finops_hold_budgets",
    metadata,
    Column("hold_id", String(32), ForeignKey("finops_holds.id"), primary_key=True),
    Column("budget_id", Integer, ForeignKey("finops_budgets.id"), primary_key=True),
    Index("ix_finops_hold_budgets_budget_id", "budget_id"),
)

alerts = Table(
    "finops_alerts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("budget_id", Integer, ForeignKey("finops_budgets.id"), nullable=False),
    _big("period_start_us"),
    Column("threshold_percent", Integer, nullable=False),
    _big("spent_pico"),
    _big("limit_pico"),
    _text("run_id", True),
    _big("created_us"),
    UniqueConstraint("budget_id", "period_start_us", "threshold_percent"),
)

deliveries = Table(
    "finops_deliveries",
    metadata,
    Column("alert_id", String(32), ForeignKey("finops_alerts.id"), primary_key=True),
    Column("channel", Text, primary_key=True),
    _text("state"),
    Column("num_attempts", Integer, nullable=False),
    _big("due_us"),
    _text("last_error", True),
)

approvals = Table(
    "finops_approvals",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("subject_hash", String(64), nullable=False),
    _text("kind"),
    _text("requester"),
    _text("summary"),
    _big("estimate_pico"),
    _text("state"),
    _big("created_us"),
    _big("expires_us"),
    _text("decided_by", True),
    _big("decided_us", True),
    _text("reason", True),
    Index("ix_finops_approvals_subject_hash", "subject_hash"),
)

audit = Table(
    "finops_audit",
    metadata,
    Column("id", _BigId, primary_key=True, autoincrement=True),
    _big("time_us"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _text("detail"),
)

commitments = Table(
    "finops_commitments",
    metadata,
    Column("id", Text, primary_key=True),
    _text("terms"),
    _big("start_us"),
    _big("end_us"),
)

stage_runs = Table(
    "finops_stage_runs",
    metadata,
    Column("id", _BigId, primary_key=True, autoincrement=True),
    _text("run_id"),
    _text("stage"),
    _text("method"),
    _text("hardware"),
    _big("num_parameters", True),
    _big("num_tokens", True),
    _big("duration_us"),
    _text("status"),
    _big("created_us"),
    UniqueConstraint("run_id", "stage", "created_us"),
    Index("ix_finops_stage_runs_stage_method_hardware", "stage", "method", "hardware"),
)

estimates = Table(
    "finops_estimates",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("stage", Text, primary_key=True),
    _big("expected_us"),
    _big("low_us"),
    _big("high_us"),
    _big("expected_pico"),
    _big("low_pico"),
    _big("high_pico"),
    _text("basis"),
    _big("created_us"),
)

promotions = Table(
    "finops_promotions",
    metadata,
    Column("run_id", Text, primary_key=True),
    _text("model_name"),
    _text("model_id"),
    _text("replaced_model_id", True),
    _text("team"),
    _big("price_per_1k_nano"),
    _big("replaced_price_per_1k_nano", True),
    _big("decision_pico"),
    _big("time_us"),
)

comparisons = Table(
    "finops_comparisons",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("family", String(64), nullable=False),
    _text("tasks"),
    _big("created_us"),
    UniqueConstraint("family", "tasks"),
)

declared_rules = Table(
    "finops_declared_rules",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("comparison_id", Integer, ForeignKey("finops_comparisons.id"), nullable=False),
    _text("rule"),
    _text("declared_by"),
    _big("created_us"),
    Index("ix_finops_declared_rules_comparison_id", "comparison_id"),
)

attempts = Table(
    "finops_attempts",
    metadata,
    Column("comparison_id", Integer, ForeignKey("finops_comparisons.id"), primary_key=True),
    Column("attempt", String(64), primary_key=True),
    Column("batch", Integer, nullable=False),
    Column("batch_size", Integer, nullable=False),
    _big("created_us"),
)
