"""Generation engines behind one interface: token ids in, token ids and log-probabilities out.

    base                 the interface, and what an engine must know of a model
    environment          settings of the process that must precede the first import
    vllm_engine          vLLM on GPU or CPU
    vllm_process         starting and ending vLLM, for generation and for scoring
    transformers_engine  plain transformers, where vLLM is not installed

Importing this package imports neither torch nor an engine.
"""

from stages.engines.base import (
    Completion,
    Generator,
    ModelFacts,
    Request,
    context_length,
    model_facts,
    open_generator,
    sequence_seed,
)

__all__ = [
    "Completion",
    "Generator",
    "ModelFacts",
    "Request",
    "context_length",
    "model_facts",
    "open_generator",
    "sequence_seed",
]
