"""How much each position counts in the loss: `[[train.weights]]`, of which several multiply.

A weight is a pure function of the student's distribution at the position, the teacher's record, the
place in the response, and what is known of the sequence (outcome, pass rate of its prompt). No
gradient flows through it. Each weight is one file here (options, function and what it leaves of the
legality contract) and one line in `catalogue`.

    base             what a weight is, and what it may read
    catalogue        the weights there are
    random_share     the control: a fresh random share of the positions
    entropy          the share of the positions at which the student is least certain
    tip              the same, or where it is certain and the teacher disagrees
    entropy_gap      where the student is less certain than the teacher
    teacher_entropy  where the teacher is certain
    position_decay   early positions
    first            the first share, or the first tokens, of each response
    prefix           contexts as often as the student itself would visit them
    length           a power of the length of the response
    pass_rate        prompts the student solves sometimes (PACED)
    scope            responses by their perplexity among those to the same prompt
    rates            what compares the responses to a prompt, counted on the set that is trained on
    step             the weights of one optimiser step over all ranks

`stages.objectives.contract` says what weights leave of the guarantee. The functions are NumPy, not
torch: they run on the CPU in float64, so that every rank and every resumed run computes the same
bits from the same statistics.
"""
