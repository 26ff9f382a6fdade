"""One check of everything that can be known before the first token is generated.

    finding     what a check says: ok, note or refused
    gate        runs all checks, in the order in which `afterglow check` prints them
    scope       what the checks look at: nodes to be made
    known       what can be said of a model before it is loaded, or even made
    models      models that are not there, or do not share their token ids
    engines     what the engine of a stage cannot run
    resources   memory and disk of this machine
    weights     quantised weights, and what a checkpoint holds beside a text model
    prompts     prompt files: that they open, hold the field, and answers where these are needed
    templates   chat templates of the student and of the teacher
    endings     tokens that end a response
    lengths     contexts of models against the longest prompts and responses
    sampling    how much is drawn, and what is left to train on
    objectives  what students learn from
    show        the first prompt of every source, as text and as tokens

A check is a function `(scope) -> Iterator[Finding]` that `gate.CHECKS` lists. It reads small files
only: no weights, no network, and no import of torch.
"""
