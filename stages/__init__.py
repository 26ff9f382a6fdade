"""The stages of the chain, one module or package each; see `pipeline.graph` for their order."""
