"""Teacher scoring: logits of the teacher in, sparse unbiased records out.

    philox          uniforms from (seed, sequence, position): the only randomness there is
    kernels, order  numba: one row of logits -> the ids of one record
    records         what a sampler returns: the columns records are stored in
    sampler         records of a block of rows on the CPU
    torch_sampler   the same records in plain torch, for logits that live on a GPU
    score           hidden states -> head in chunks -> records of whole sequences
    scorer          a loaded teacher behind one interface, whatever runs it

    vllm_scorer     the teacher in vLLM: requests out, answers in
    vllm_model      the same, at the other end: a pooler that makes records; imported by vLLM only
    vllm_wire       what travels between the two

A record is defined by (logits, record parameters, uniforms) alone, so batching, order, sharding and
retries cannot change it.
"""
