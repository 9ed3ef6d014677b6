"""Comparisons, their declared rules, and the candidates that were tried in each: what an error level is spent on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from finops.ledger.migrations.triggers import make_append_only

revision = "0002"
down_revision = "0001"
APPEND_ONLY = ("finops_declared_rules", "finops_attempts")


def upgrade() -> None:
    """Create the three tables; what was declared and tried is append-only."""
    op.create_table(
        "finops_comparisons",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("family", sa.String(length=64), nullable=False),
        sa.Column("tasks", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_comparisons")),
        sa.UniqueConstraint("family", "tasks", name=op.f("uq_finops_comparisons_family_tasks")),
    )
    op.create_table(
        "finops_declared_rules",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("comparison_id", sa.Integer(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("declared_by", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"],
            ["finops_comparisons.id"],
            name=op.f("fk_finops_declared_rules_comparison_id_finops_comparisons"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finops_declared_rules")),
    )
    op.create_index("ix_finops_declared_rules_comparison_id", "finops_declared_rules", ["comparison_id"], unique=False)
    op.create_table(
        "finops_attempts",
        sa.Column("comparison_id", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.String(length=64), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"],
            ["finops_comparisons.id"],
            name=op.f("fk_finops_attempts_comparison_id_finops_comparisons"),
        ),
        sa.PrimaryKeyConstraint("comparison_id", "attempt", name=op.f("pk_finops_attempts")),
    )
    for table in APPEND_ONLY:
        make_append_only(table)
