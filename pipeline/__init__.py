"""Configuration, identity, scheduling and the `afterglow` command; stages are in `stages`."""
