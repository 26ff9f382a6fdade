"""Write docs/methods.md, every method that comes with the package, from the overlays themselves.

python tools/methods_page.py            write the page
python tools/methods_page.py --check    exit 1 if it is not what would be written
"""

import sys
from pathlib import Path

import tomli_w

from pipeline.planning.document import write_or_check
from pipeline.planning.methods import Method, method_names, read_method

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"

INTRODUCTION = """\
# Published methods, from one cache

```bash
afterglow methods                                       # what there is
afterglow methods tip                                   # all that is known of one
afterglow run report --recipe demo --method tip         # its student beside that of [train]
make rollouts teacher-logits train METHOD=tip           # the same by make
```

A method is an overlay: a file of a few lines in `pipeline/recipes/methods/` that says what a
student of the method does otherwise. `--method NAME` lays it over a recipe as
`[train.compare.NAME]`, so it trains for the same steps from the same start on the same records, and
the student of `[train]` is its control in every table. Neither rollouts nor the teacher run again
for a further method. `afterglow seeds --method NAME` repeats both over seeds.

Several methods are one student, called after all of them: their weights multiply, and two that set
the same field are an error that names both. Options are changed as in any recipe, after the
overlay: `--set 'train.compare.tip.weights=[{ name = "tip", score = "q3", keep = 0.2 }]'`. What a
method reads and the recipe will not have (a record with a head, outcomes, several responses to a
prompt) is an error before anything runs ([check.md](check.md)).

**Offline** is what the method is on `head_tail` records of rollouts, the default: *exact* as
published, *unbiased* or a *lower bound* of the loss over the whole vocabulary, *biased*, or
*another objective*, where what was realised decides which contexts count. A test asks the
[contract](contract.md) whether it is so, and each formula has its proof. This page is written by
`python tools/methods_page.py` from the overlays; what a paper claims is its own, and was not
measured here.

"""

ORDER = ("position weight", "sequence weight", "routing", "objective", "control")


def page() -> str:
    """The page as it should be."""
    methods = [read_method(name) for name in method_names()]
    methods.sort(key=lambda one: ORDER.index(one.mechanism))
    lines = ["| method | mechanism | offline | what it is |", "|---|---|---|---|"]
    for one in methods:
        link = f"[`{one.name}`](#{one.name})"
        lines.append(f"| {link} | {one.mechanism} | {one.offline} | {one.title} |")
    return INTRODUCTION + "\n".join([*lines, "", *map(_section, methods)])


def _section(method: Method) -> str:
    """All that is known of one method."""
    paper = method.paper
    if method.arxiv:
        paper = f"[{paper}](https://arxiv.org/abs/{method.arxiv}) (arXiv {method.arxiv})"
    facts = {
        "paper": paper,
        "here": method.does,
        "offline": f"{method.offline}: {method.why}",
        "needs": method.needs,
        "cost": method.cost,
        "they claim": method.claim,
    }
    rows = "\n".join(f"- {name}: {_sentence(text)}" for name, text in facts.items() if text)
    overlay = tomli_w.dumps({"train": method.train}).strip()
    return f"## {method.name}\n\n{rows}\n\n```toml\n{overlay}\n```\n"


def _sentence(text: str) -> str:
    return text if text.endswith((".", ")")) else f"{text}."


def main(arguments: list[str]) -> int:
    """Write or check the page; returns the exit code."""
    return write_or_check(PAGE, page(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
