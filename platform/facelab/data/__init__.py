"""Faces on their way from storage to tensors."""
