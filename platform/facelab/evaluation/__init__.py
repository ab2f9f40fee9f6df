"""One pass of a model over its test sets."""
