"""Where bytes lie: local paths and object stores, and writes that are atomic on both."""
