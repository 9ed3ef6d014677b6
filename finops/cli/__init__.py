"""The commands over the ledger, one file each: options in, text out."""
