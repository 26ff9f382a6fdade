"""Teacher scoring: logits of the teacher in, sparse unbiased records out.

    philox          uniforms from (seed, sequence, position): the only randomness there is
    kernels         numba: one row of logits -> one record
    sampler         records of a block of rows on the CPU, and the columns they are stored in
    torch_sampler   the same records in plain torch, for logits that live on a GPU
    score           hidden states -> head in chunks -> records of whole sequences
    scorer          a loaded teacher behind one interface, whatever runs it

A record is defined by (logits, record parameters, uniforms) alone, so batching, order, sharding and
retries cannot change it.
"""
