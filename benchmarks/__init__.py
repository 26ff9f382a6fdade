"""Speed and size, measured against targets and alternatives.

    python -m benchmarks            all of them; writes docs/benchmarks.md and .jsonl (`make bench`)
    python -m benchmarks.<name>     one of them
    --quick                         toy sizes: tests that it runs, not how fast

    harness       rounds, ratios, lines of the table of targets
    sources       teachers, synthetic (`generator`) and real (`teachers`), as rows of logits
    errors        gradient error of records, exactly
    floor         lower bound for any context-free coder of counts
    records       records of a teacher as rows and sets
    peers         other containers for the same records; `trl_losses` the losses of TRL
    steps         training steps with one loss or another
    models        random teachers with the entropy of trained ones

    gradient_error, error_by_size         error of records
    size, packed                          their bytes
    candidates                            what pi_ref's own ids in them are worth; run by itself
    decode, containers, memory            reading records
    sampler, extraction, vllm_scoring     making records
    drawing                               what options of sampling cost
    train_step, reader_share              training on records

    drift         offline gradients against live ones, and what tells when they part; run by itself
                  (python -m benchmarks.drift demo), it writes docs/drift.md
    inspector     pages of 100,000 sequences, to write and in a browser (`browser`); run by itself
                  (python -m benchmarks.inspector demo), it writes docs/report.md

What is compared is measured in the same run, in turn, as CPU time of the process: other load
changes all times but hardly their ratio. Benchmarks report; they assert nothing.
"""
