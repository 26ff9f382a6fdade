"""Speed and size, measured against what else one could use, with ratios and targets.

    python -m benchmarks            all of them; writes docs/benchmarks.md and .jsonl (`make bench`)
    python -m benchmarks.<name>     one of them
    --quick                         toy sizes: whether it runs, not how fast

    harness       rounds, ratios, lines of the table of targets
    sources       teachers, synthetic (`generator`) and real (`teachers`), as rows of logits
    errors        gradient error of records, exactly
    floor         what no context-free coder of counts can go below
    records       records of a teacher as rows and sets
    peers         other containers for the same records; `trl_losses` the losses of TRL
    steps         training steps with one loss or another

    gradient_error, size, packed          what a byte of record is worth
    decode, containers, memory            getting records out
    sampler, extraction, vllm_scoring     getting records in
    train_step, reader_share              using them

Everything that is compared is measured in the same run, turn by turn, in CPU time of the process:
other load moves all times, but hardly their ratio. Benchmarks report; they assert nothing.
"""
