"""One training loop for `pretrain`, `sft` and `train`: they differ in data, start and objective.

    loop          one page: next batch, forward and backward, step, log line, checkpoint
    data          where batches come from, and micro-batches on the device
    optim         AdamW, schedules, clipping
    window        sums between two log lines
    drift         pi / pi_ref: mean, spread, effective sample share, chi2, and the limits on it
    checkpoint    atomic checkpoints; a killed run continues bit for bit
    metrics       metrics.jsonl
    agreement     trainer against engine, before the first step
    architecture  models from scratch
    inputs        what the data says of tokenizer, teacher and generator
    output        the trained model as a Hugging Face directory, and its manifest
    fit           the above in order, around a set directory
    live          the comparison: teacher in the loop, fresh samples every step

The stages are `run(job)` functions that check their inputs and hand `fit` a model and a source.
"""
