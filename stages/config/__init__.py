"""The configuration tables of every stage: frozen, closed (`extra="forbid"`), documented in place.

Each table has two kinds of fields. Plain fields decide what the output *means* and enter the key of
the set; fields of the nested `run` table only say how the work is executed and never do. No field
is called plain `temperature` at top level: `sampling.temperature`, `record.temperature` and
`objective.temperature` are three different things.
"""
