"""Models and tokenizers as files and as modules: loading, identity, lineage."""
