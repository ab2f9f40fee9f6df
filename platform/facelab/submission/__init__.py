"""Jobs on their way to a cluster."""
