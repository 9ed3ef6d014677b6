"""Reading the ledger: showback, KPIs, savings, estimates, Prometheus metrics."""
