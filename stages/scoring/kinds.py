"""How each kind of record is drawn: the module of `stages.scoring` that is named after it.

A module has two functions of the same signature. `on_cpu(rows, cand_RC, u_RU, record)` takes
`sampler_kernels.LogitRows` and numpy arrays, fills in what `LogitRows` receives (`open_rows`), and
returns the columns of the kind by field of `drawn.Records`; `on_gpu` does so with
`rows_torch.TorchRows` and tensors. The arguments are those of `sampler_cpu.sample`.
"""

from typing import Any, Final

from stages.scoring import counts, head_tail, sampled, top_k

SAMPLERS: Final[dict[str, Any]] = {
    "sampled": sampled,
    "counts": counts,
    "head_tail": head_tail,
    "top_k": top_k,
}
"""The module of every kind."""
