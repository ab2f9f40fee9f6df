"""Jobs that are made of jobs."""
