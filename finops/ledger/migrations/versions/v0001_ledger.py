"""The ledger's first schema: charges, budgets, alerts, approvals, audit and what estimates and reports are made of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from finops.ledger.migrations.triggers import make_append_only

revision = "0001"
down_revision = None
APPEND_ONLY = ("finops_charges", "finops_audit")


def upgrade() -> None:
    """Create all tables, then the triggers that make charges and the audit trail append-only."""
    op.create_table(
        "finops_approvals",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("subject_hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("requester", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("estimate_pico", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_us", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_approvals")),
    )
    op.create_index("ix_finops_approvals_subject_hash", "finops_approvals", ["subject_hash"], unique=False)
    op.create_table(
        "finops_audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_audit")),
    )
    op.create_table(
        "finops_budgets",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=True),
        sa.Column("environment", sa.Text(), nullable=True),
        sa.Column("model_family", sa.Text(), nullable=True),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("limit_pico", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("limit_pico >= 0", name=op.f("ck_finops_budgets_limit")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_budgets")),
        sa.UniqueConstraint("name", name=op.f("uq_finops_budgets_name")),
    )
    op.create_table(
        "finops_charges",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("charge_category", sa.Text(), nullable=False),
        sa.Column("charge_class", sa.Text(), nullable=True),
        sa.Column("corrects", sa.String(length=64), nullable=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("work", sa.Text(), nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=False),
        sa.Column("resource_type", sa.Text(), nullable=False),
        sa.Column("accelerator", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("num_devices", sa.Integer(), nullable=False),
        sa.Column("mig_profile", sa.Text(), nullable=True),
        sa.Column("purchase_option", sa.Text(), nullable=False),
        sa.Column("commitment_id", sa.Text(), nullable=True),
        sa.Column("commitment_status", sa.Text(), nullable=True),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("end_us", sa.BigInteger(), nullable=False),
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("quantity_micro", sa.BigInteger(), nullable=True),
        sa.Column("pricing_unit", sa.Text(), nullable=True),
        sa.Column("device_micro", sa.BigInteger(), nullable=False),
        sa.Column("consumed_micro", sa.BigInteger(), nullable=True),
        sa.Column("list_price_nano", sa.BigInteger(), nullable=True),
        sa.Column("contracted_price_nano", sa.BigInteger(), nullable=True),
        sa.Column("list_usd_nano", sa.BigInteger(), nullable=True),
        sa.Column("contracted_usd_nano", sa.BigInteger(), nullable=True),
        sa.Column("price_version", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("fx_rate", sa.Text(), nullable=False),
        sa.Column("fx_date", sa.Text(), nullable=True),
        sa.Column("list_pico", sa.BigInteger(), nullable=False),
        sa.Column("contracted_pico", sa.BigInteger(), nullable=False),
        sa.Column("billed_pico", sa.BigInteger(), nullable=False),
        sa.Column("effective_pico", sa.BigInteger(), nullable=False),
        sa.Column("effective_usd_pico", sa.BigInteger(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("model_family", sa.Text(), nullable=False),
        sa.Column("workload_type", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("num_requests", sa.BigInteger(), nullable=True),
        sa.Column("busy_micro", sa.BigInteger(), nullable=True),
        sa.Column("hold_id", sa.String(length=32), nullable=True),
        sa.CheckConstraint(
            "(charge_class IS NULL) OR charge_class = 'Correction'", name=op.f("ck_finops_charges_class")
        ),
        sa.CheckConstraint("(quantity_micro IS NULL) = (pricing_unit IS NULL)", name=op.f("ck_finops_charges_unit")),
        sa.CheckConstraint("end_us >= start_us", name=op.f("ck_finops_charges_period")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_charges")),
        sa.UniqueConstraint("key", name=op.f("uq_finops_charges_key")),
    )
    op.create_index(
        "ix_finops_charges_cube",
        "finops_charges",
        [
            "team",
            "month",
            "environment",
            "model_family",
            "workload_type",
            "accelerator",
            "purchase_option",
            "work",
            "day",
            "device_micro",
            "effective_usd_pico",
        ],
        unique=False,
    )
    op.create_index("ix_finops_charges_run_id", "finops_charges", ["run_id"], unique=False)
    op.create_index("ix_finops_charges_start_us", "finops_charges", ["start_us"], unique=False)
    op.create_table(
        "finops_commitments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("end_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_commitments")),
    )
    op.create_table(
        "finops_estimates",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("expected_us", sa.BigInteger(), nullable=False),
        sa.Column("low_us", sa.BigInteger(), nullable=False),
        sa.Column("high_us", sa.BigInteger(), nullable=False),
        sa.Column("expected_pico", sa.BigInteger(), nullable=False),
        sa.Column("low_pico", sa.BigInteger(), nullable=False),
        sa.Column("high_pico", sa.BigInteger(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "stage", name=op.f("pk_finops_estimates")),
    )
    op.create_table(
        "finops_holds",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("amount_pico", sa.BigInteger(), nullable=False),
        sa.Column("used_pico", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("ttl_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount_pico >= 0", name=op.f("ck_finops_holds_amount")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_holds")),
    )
    op.create_index("ix_finops_holds_state", "finops_holds", ["state"], unique=False)
    op.create_table(
        "finops_open_charges",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_us", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_every_us", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_us", sa.BigInteger(), nullable=True),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("hold_id", sa.String(length=32), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_open_charges")),
    )
    op.create_index("ix_finops_open_charges_state", "finops_open_charges", ["state"], unique=False)
    op.create_table(
        "finops_promotions",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("replaced_model_id", sa.Text(), nullable=True),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("price_per_1k_nano", sa.BigInteger(), nullable=False),
        sa.Column("replaced_price_per_1k_nano", sa.BigInteger(), nullable=True),
        sa.Column("decision_pico", sa.BigInteger(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_finops_promotions")),
    )
    op.create_table(
        "finops_stage_runs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("num_parameters", sa.BigInteger(), nullable=True),
        sa.Column("num_tokens", sa.BigInteger(), nullable=True),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_stage_runs")),
        sa.UniqueConstraint("run_id", "stage", "created_us", name=op.f("uq_finops_stage_runs_run_id_stage_created_us")),
    )
    op.create_index(
        "ix_finops_stage_runs_stage_method_hardware", "finops_stage_runs", ["stage", "method", "hardware"], unique=False
    )
    op.create_table(
        "finops_alerts",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("budget_id", sa.Integer(), nullable=False),
        sa.Column("period_start_us", sa.BigInteger(), nullable=False),
        sa.Column("threshold_percent", sa.Integer(), nullable=False),
        sa.Column("spent_pico", sa.BigInteger(), nullable=False),
        sa.Column("limit_pico", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["finops_budgets.id"], name=op.f("fk_finops_alerts_budget_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_alerts")),
        sa.UniqueConstraint(
            "budget_id",
            "period_start_us",
            "threshold_percent",
            name=op.f("uq_finops_alerts_budget_id_period_start_us_threshold_percent"),
        ),
    )
    op.create_table(
        "finops_budget_periods",
        sa.Column("budget_id", sa.Integer(), nullable=False),
        sa.Column("period_start_us", sa.BigInteger(), nullable=False),
        sa.Column("spent_pico", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["finops_budgets.id"], name=op.f("fk_finops_budget_periods_budget_id")),
        sa.PrimaryKeyConstraint("budget_id", "period_start_us", name=op.f("pk_finops_budget_periods")),
    )
    op.create_table(
        "finops_hold_budgets",
        sa.Column("hold_id", sa.String(length=32), nullable=False),
        sa.Column("budget_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["finops_budgets.id"], name=op.f("fk_finops_hold_budgets_budget_id")),
        sa.ForeignKeyConstraint(["hold_id"], ["finops_holds.id"], name=op.f("fk_finops_hold_budgets_hold_id")),
        sa.PrimaryKeyConstraint("hold_id", "budget_id", name=op.f("pk_finops_hold_budgets")),
    )
    op.create_index("ix_finops_hold_budgets_budget_id", "finops_hold_budgets", ["budget_id"], unique=False)
    op.create_table(
        "finops_deliveries",
        sa.Column("alert_id", sa.String(length=32), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("num_attempts", sa.Integer(), nullable=False),
        sa.Column("due_us", sa.BigInteger(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["alert_id"], ["finops_alerts.id"], name=op.f("fk_finops_deliveries_alert_id")),
        sa.PrimaryKeyConstraint("alert_id", "channel", name=op.f("pk_finops_deliveries")),
    )
    for table in APPEND_ONLY:
        make_append_only(table)
