"""The token inspector: sequences as text, every token coloured by what is known of it.

    pieces       token ids to bytes, as their tokenizer joins them
    quantities   what tokens are coloured by: one number for each position
    gather       reads a set: a line for every sequence, the tokens of some
    pack         columns to one compressed text in the page
    inspect      `afterglow inspect`, and the part of a report
    student      a model at every position of a batch; the only module that imports torch

The page is drawn by the scripts in `stages/reporting/assets`.
"""
