"""Teacher records on disk: schema, codec, parts, manifests and the streaming reader.

Nothing here imports torch, transformers or vllm, so that anyone can read shards with the base
install. The file format is specified in `FORMAT.md`.
"""
