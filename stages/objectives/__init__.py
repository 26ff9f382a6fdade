"""What a student may minimise, and what each record makes of it.

An objective sees the student only through its log-probabilities at stored ids. That is enough for
every loss worth training from sparse records, it makes each one a short pure function that can be
enumerated on a vocabulary of eight, and it lets a single chunked backward pass through the language
model head (`stages.losses.head_loss`) serve them all.

    objective.py        `Objective`: options, row of the contract and loss of a method in one class
    catalogue.py        all of them, a line each
    likelihood.py       cross_entropy, forward_kl, redi
    f_divergence.py     jsd, skew_forward_kl, skew_reverse_kl, tvd, ghost_kl
    nkd.py              a target id, and the distribution of all others
    ranking.py          pld and list_mle: the teacher's order of ids
    taid.py             forward KL to a target that moves from student to teacher
    lightning.py        the sampled-token objective of Lightning OPD
    policy_gradient.py  the same token with an importance weight
    reverse_kl.py       corrected, bucketed and residual-only reverse KL
    mixture.py          weighted sums of these, with weights that follow training progress
    contract.py         which record makes which objective exact, unbiased, a bound, biased, refused
    weighted.py         what weights need of the data, and what they make of a loss
    tensors.py          records as tensors, and what they tell of the teacher's distribution
    temper.py           records at another temperature than they were made at

All but the last two import no torch: a configuration is checked before any model is loaded. For
that reason this file re-exports nothing.
"""
