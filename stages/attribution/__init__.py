"""Who wrote this? Statistical and direct checks of a set against a model; `verify` is the entry."""
