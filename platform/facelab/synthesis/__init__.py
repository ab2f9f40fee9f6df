"""Pairs out of sharp faces."""
