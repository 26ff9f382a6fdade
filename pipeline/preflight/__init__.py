"""One check of everything that can be known before the first token is generated.

    finding     what a check says: ok, note or refused
    gate        runs all checks, in the order in which `afterglow check` prints them
    scope       what the checks look at: nodes to be made, their models and prompts
    models      models that are not there, or do not fit each other
    resources   memory and disk of this machine
    prompts     prompt files: that they open, hold the field, and answers where these are needed

A check is a function `(scope) -> Iterator[Finding]` that `gate.CHECKS` lists. It reads small files
only: no weights, no network, and no import of torch.
"""
