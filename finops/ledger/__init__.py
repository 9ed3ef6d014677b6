"""The ledger: its schema, its database, charges and what is read back from them."""
