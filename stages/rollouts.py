"""`rollouts`: pi_ref answers the OPD prompts.

Besides each token the set keeps what offline distillation needs of pi_ref: the log-probability with
which the token was really drawn, and pi_ref's likeliest ids at each position (the candidates, whose
teacher log-probability scoring will store exactly). The identity of the teacher pi_ref learnt from
is handed on.
"""

from stages.generation import commit, open_engine, plan, run_shards

__all__ = ["commit", "open_engine", "plan", "run_shards"]
