"""Generation engines behind one interface: token ids in, token ids and log-probabilities out.

- `base`: the interface and its limits
- `open`: choosing and starting an engine
- `vllm_engine`: vLLM on GPU or CPU
- `vllm_process`: starting and stopping vLLM, for generation and for scoring
- `transformers_engine`: plain transformers, where vLLM is not installed
"""
