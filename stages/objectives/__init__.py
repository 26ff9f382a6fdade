"""What a student may minimise, and what each record makes of it.

An objective sees the student only through its log-probabilities at stored ids. That is enough for
every loss worth training from sparse records, it makes each one a short pure function that can be
enumerated on a vocabulary of eight, and it lets a single chunked backward pass through the language
model head (`stages.head_loss`) serve them all.

    records.py      `TorchRecords`, `Terms`, and the protocol of an objective
    likelihood.py   cross_entropy, forward_kl
    lightning.py    the sampled-token objective of Lightning OPD
    reverse_kl.py   corrected, bucketed and residual-only reverse KL
    build.py        from the configuration to the function
    contract.py     which record makes which objective exact, unbiased, a bound, biased or refused

`contract` imports no torch: a configuration is judged before any model is loaded. For that reason
this file re-exports nothing.
"""
