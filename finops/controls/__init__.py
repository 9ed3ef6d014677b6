"""What may be spent: budgets with reservations, approvals, alerts."""
