"""Alembic migrations of the ledger; `finops.ledger.database` runs them when a ledger is opened."""
