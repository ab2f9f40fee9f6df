"""The one training loop, with what it trains."""
