"""The path "your own prompts", on real problems: GSM8K, whose answers end with `#### 72`."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build
from stages.config.corpus import Tokenizer
from stages.config.data import PromptSource
from stages.data.preview import preview
from stages.data.prompts import count_prompts, load_prompts
from stages.models.tokenizer import load_tokenizer, make_tokenizer
from storage.errors import DataError
from storage.manifest import read_manifest
from storage.schema import OUTCOME
from tests.command import ROOT, sets_named
from tests.storage import make
from tests.world import write_model

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"

pytestmark = pytest.mark.skipif(
    not (GSM8K / "train.jsonl").exists(),
    reason="GSM8K is not here: put train.jsonl and test.jsonl into ../shared/data/gsm8k",
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    make_tokenizer(Tokenizer(vocab_size=259), [], directory)
    return directory


def recipe_of_the_docs() -> str:
    """The example of docs/prompts.md."""
    text = (ROOT / "docs" / "prompts.md").read_text()
    return text.partition("```toml\n# gsm8k.toml\n")[2].partition("```")[0]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, PromptSource]:
    """The prompts of each stage of the example, with the files where they are here."""
    (tmp_path / "a.toml").write_text(recipe_of_the_docs().replace("gsm8k/", f"{GSM8K}/"))
    nodes = build(load_recipe(None, [tmp_path / "a.toml"]))
    found = {node.stage.name: node.config.prompt_source() for node in nodes}
    return {name: source for name, source in found.items() if source is not None}


def test_all_problems_have_their_answers(sources: dict[str, PromptSource], words: Path) -> None:
    assert {name: count_prompts(one) for name, one in sources.items()} == {
        "sft-data": 300,
        "rollouts": 500,
        "evaluate": 200,
    }
    problems = [json.loads(line) for line in (GSM8K / "train.jsonl").open()]
    prompts = load_prompts(sources["rollouts"], words)
    assert prompts.prompt_ids.tolist() == list(range(300, 800))
    assert prompts.report.answers == prompts.report.kept == 500
    for prompt in prompts:
        problem = problems[prompt.prompt_id]
        assert problem["answer"].endswith(f"#### {prompt.answer}")
        assert str(prompt.answer).replace(",", "").lstrip("-").isdecimal()
    text = str(load_tokenizer(words).decode(prompts[0].ids.tolist()))
    system = sources["rollouts"].template.system
    assert text == f"<bos>{system}{problems[300]['question']}"


def test_the_preview_shows_the_first_problem(sources: dict[str, PromptSource], words: Path) -> None:
    seen = preview(sources["evaluate"], words)
    assert seen.number == 0
    assert "Janet" in seen.text
    assert seen.answer == "18"
    assert len(seen.notes) == 1
    assert "enable_thinking has no effect" in seen.notes[0], "here, unlike the models of the docs"


def test_a_pattern_of_another_layout_is_refused(
    sources: dict[str, PromptSource], words: Path
) -> None:
    wrong = sources["evaluate"].model_copy(update={"answer_pattern": r"\\boxed\{(.+)\}"})
    with pytest.raises(DataError, match=r"no row has a reference answer in `answer` that matches"):
        load_prompts(wrong, words)


def test_the_example_runs(tmp_path: Path, words: Path) -> None:
    """Its first stage, with a tiny model in the place of the teacher and two of the problems."""
    model = write_model(tmp_path / "model", words=load_tokenizer(words), context=1024)
    (tmp_path / "a.toml").write_text(recipe_of_the_docs().replace("gsm8k/", f"{GSM8K}/"))
    settings = [
        f"store={tmp_path / 'store'}",
        f"teacher.path={model}",
        f"student.path={model}",
        "sft-data.prompts.limit=2",
        "sft-data.sampling.max_tokens=4",
        "sft-data.verifier.kind=exact_match",
        "sft-data.run.engine=transformers",
    ]
    options = [word for one in settings for word in ("--set", one)]
    config = ["--config", str(tmp_path / "a.toml")]
    assert main(["run", "sft-data", "--here", *config, *options]) == 0
    (made,) = sets_named(tmp_path / "store", "sft-data")
    manifest = read_manifest(made)
    assert (manifest.meta["prompts"]["kept"], manifest.meta["prompts"]["answers"]) == (2, 2)
    assert manifest.meta["template"]["kwargs"] == {"enable_thinking": False}
    assert not (set(make.rows_of(made)["outcome"].tolist()) & {OUTCOME["unknown"]})
