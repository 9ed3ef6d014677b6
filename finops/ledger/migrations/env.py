"""Alembic's entry: runs the migrations on the connection that `finops.ledger.database` hands over."""

from __future__ import annotations

from alembic import context

from finops.ledger.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the caller holds one transaction around all of it
    include_name=lambda name, type_, parents: type_ != "table" or str(name).startswith("finops_"),
)
context.run_migrations()
