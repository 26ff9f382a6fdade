"""Teacher scoring: logits of the teacher in, sparse unbiased records out.

    philox           uniforms from (seed, sequence, position): the only randomness there is
    drawn            what a sampler returns: the columns records are stored in
    sampled, counts, head_tail, top_k
                     one kind of record each, on the CPU and on a GPU; `kinds` lists them
    sampler_cpu      records of a block of rows on the CPU, in numba (`sampler_kernels`)
    sampler_torch    the same in plain torch (`rows_torch`), for logits that live on a GPU
    score            hidden states -> head in chunks -> records of whole sequences
    scorer           a loaded teacher behind one interface, whatever runs it
    calibrate        tau for a mean number of entries
    teacher_prompt   the teacher reads another prompt than the student

    vllm_scorer      the teacher in vLLM: requests out, answers in
    vllm_model       the same, at the other end: a pooler that makes records; imported by vLLM only
    vllm_wire        what travels between the two

A record is defined by (logits, record parameters, uniforms) alone, so batching, order, sharding and
retries cannot change it.
"""
