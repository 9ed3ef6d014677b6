"""Money: prices, charges, budgets, approvals, reports. It knows models and machines by their names only."""
