"""Teacher scoring: logits of the teacher in, sparse unbiased records out.

    philox           uniforms from (seed, sequence, position): the only randomness there is
    drawn            what samplers take and return: rows of logits, columns of records
    sampled, counts, head_tail, top_k
                     one kind of record each, on a CPU and on a GPU
    sampler          records of a block of rows, by the module of their kind: on a CPU in numba
                     (`sampler_kernels`), on a GPU in torch (`rows_torch`)
    score            hidden states -> head in chunks -> records of whole sequences
    scorer           a loaded teacher behind one interface, on either engine
    calibrate        tau for a mean number of entries
    teacher_prompt   the teacher reads another prompt than the student

    vllm_scorer      the teacher in vLLM: requests out, answers in
    vllm_model       the worker's side: a pooler that makes records; imported by vLLM only

A record is defined by (logits, record parameters, uniforms) alone, so batching, order, sharding and
retries cannot change it.
"""
