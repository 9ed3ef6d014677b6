"""Alembic migrations of the ledger; `finops.database` runs them when a ledger is opened."""
