"""A drawn world, for machines without face photographs."""
