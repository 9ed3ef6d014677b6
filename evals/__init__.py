"""What a Target (a served model at a URL) is worth: quality, load, cost, statistics, frontier."""
