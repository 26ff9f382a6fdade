"""One training loop for `pretrain`, `sft` and `train`: they differ in data, start and objective.

    fit                the below in order, around a set directory
    loop               one page: next batch, forward and backward, step, log line, checkpoint
    microbatches       where batches come from, and how a step is cut
    optim              AdamW, schedules, clipping
    metrics            sums between two log lines, and metrics.jsonl
    drift              KL(pi_ref, student) and what else pi / pi_ref tells, and limits on it
    agreement          trainer against engine, before the first step
    checkpoint         atomic checkpoints; a killed run continues bit for bit, on any world size
    remote_checkpoint  the same in an object store
    output             the trained model as a Hugging Face directory, and its manifest
    group              the processes that train one model: what a step asks of them
    distributed        several of them: FSDP2
    live               the comparison: teacher in the loop, fresh samples every step

The stages are `run(job)` functions that check their inputs and hand `fit` a `Task`.
"""
