"""Configuration, identity, scheduling and the `afterglow` command; stage logic lives in `stages`."""
