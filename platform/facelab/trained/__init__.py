"""Networks that have their weights."""
