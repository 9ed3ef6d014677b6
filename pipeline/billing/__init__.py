"""What a run says to the ledger: its estimate, its charges, approvals and promotions."""
