"""Each check at each level it has, through `afterglow check`."""

import json
from pathlib import Path

import pytest

from tests.pipeline.preflight.recipes import SFT, Case, write_prompts
from tests.world import tokenizer, write_model


@pytest.fixture
def case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case.at(tmp_path, capsys)


@pytest.fixture
def tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    """With SFT between the student's model and the rollouts."""
    return Case.at(tmp_path, capsys, SFT)


def test_a_recipe_that_fits_is_all_ok(tuned: Case) -> None:
    code, out, _ = tuned.call("check")
    assert code == 0
    assert {one["level"] for one in json.loads(out.splitlines()[-1])["findings"]} == {"ok"}


# Models.


def test_a_model_of_another_tokenizer_is_refused(case: Case) -> None:
    write_model(case.root / "student", letters="jihgfedcba")
    assert case.find("token ids of") == ["refused"]


def test_a_model_with_further_ids_is_accepted_with_a_note(case: Case) -> None:
    write_model(case.root / "student", letters="abcdefghijk")
    assert case.find("shares the ids of") == ["note"]


def test_a_model_whose_configuration_cannot_be_read_is_refused(case: Case) -> None:
    (case.root / "student" / "config.json").write_text("{")
    assert case.find("config.json: cannot be read") == ["refused"]


# Templates.

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def with_template(directory: Path, template: str) -> None:
    words = tokenizer()
    words.chat_template = template
    words.save_pretrained(directory)


def test_a_teacher_that_scores_under_another_template_is_noted(case: Case) -> None:
    assert case.find("template of") == ["ok"]
    with_template(case.root / "teacher", CHAT)
    assert case.find("template of") == ["note"]
    (one,) = [one for one in case.findings() if one["subject"].startswith("template of")]
    assert "no chat template" in one["message"]
    assert "{% for m in messages" in one["message"]
    assert "teacher_prompt" in one["mend"]
    assert case.find("template of", "teacher-logits.teacher_prompt={template='{prompt}'}") == ["ok"]


def test_sft_takes_the_template_over(tuned: Case) -> None:
    with_template(tuned.root / "teacher", CHAT)
    assert tuned.find("template of") == ["ok"]


def test_a_template_that_is_wrong_is_refused_with_its_line(case: Case) -> None:
    with_template(
        case.root / "student", "{% for m in messages %}\n{{ m['content'] + 1 }}{% endfor %}"
    )
    (refused,) = [one for one in case.findings() if one["level"] == "refused"]
    assert "line 2: {{ m['content'] + 1 }}" in refused["message"]


def test_named_templates_without_a_default_are_refused(case: Case) -> None:
    file = case.root / "student" / "tokenizer_config.json"
    named = [{"name": "rag", "template": CHAT}, {"name": "tool_use", "template": CHAT}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": named}))
    assert case.find("has several chat templates (rag, tool_use)") == ["refused"]


def test_a_template_that_reads_the_clock_is_refused_unless_the_date_is_fixed(case: Case) -> None:
    letters = "{{ strftime_now('abc') }}" + CHAT
    with_template(case.root / "student", letters)
    assert case.find("today's date") == ["refused"]
    assert case.find("today's date", "template.date=2026-01-31") == []


# Prompts.

MIXED = (
    'train.objective={{name="mixture", terms=[{{name="reverse_kl"}}, '
    '{{name="cross_entropy", on="{on}"}}]}}'
)


def test_a_later_stage_whose_prompts_lack_the_field_is_refused(case: Case) -> None:
    test = write_prompts(case.root / "test.jsonl", [{"question": "ab"}])
    table = f'evaluate.prompts={{path="{test}"}}'
    assert "refused" in case.find("no field `prompt`; it has: question", table)
    code, _, err = case.call("run", "rollouts", "--set", table)
    assert (code, "no field `prompt`" in err) == (65, True)


@pytest.mark.parametrize("name", ["test.docx", "test.parquet"])
def test_prompts_that_cannot_be_read_are_refused(case: Case, name: str) -> None:
    (case.root / name).write_text("no prompts")
    assert "refused" in case.find(name, f'evaluate.prompts={{path="{case.root / name}"}}')


def test_a_data_set_of_the_hub_is_not_asked_for(case: Case) -> None:
    asked = case.find("looked at once `run` downloads it", "rollouts.prompts.path=owner/name")
    assert asked == ["note"]


def test_an_answer_field_that_no_row_has_is_refused(case: Case) -> None:
    assert case.find("no field `anwser`", "rollouts.prompts.answer_field=anwser") == ["refused"]


RIGHT_ONLY = (
    "sft.keep=correct",
    "train.weights=[{name='pass_rate'}]",
    MIXED.format(on="right"),
)


def test_absent_answers_are_noted_and_refused_where_something_needs_them(tuned: Case) -> None:
    write_prompts(tuned.root / "prompts.jsonl", [{"prompt": "ab"}, {"prompt": "bc"}])
    evaluated = f'evaluate.prompts={{path="{tuned.root}/prompts.jsonl"}}'
    assert tuned.find("none has a reference answer") == ["ok", "note"]  # one has a verifier
    assert "note" in tuned.find("no accuracy is measured", evaluated)
    for needed in RIGHT_ONLY:
        assert tuned.find("which is needed by", needed) == ["refused"]


def test_a_column_that_the_teacher_prompt_names_must_be_there(case: Case) -> None:
    table = 'teacher-logits.teacher_prompt={{template="{{prompt}}{{{}}}"}}'
    assert case.find("no column `hint`", table.format("hint")) == ["refused"]
    assert case.find("has all columns", table.format("answer")) == ["ok"]


def test_the_first_prompt_is_shown_as_text_and_as_tokens(case: Case) -> None:
    with_template(case.root / "teacher", "a" + CHAT)
    _, out, _ = case.call("check", "--show")
    shown = out[out.index("\n\n") :].splitlines()
    assert "  | ab" in shown
    assert "  2 'a'  3 'b'" in shown
    assert "  reference answer: 'a'" in shown
    assert any(line.endswith("scores it: the same tokens") for line in shown)
    assert "  2 'a'  2 'a'  3 'b'" in shown  # what the teacher's own template would give


def test_a_prompt_of_the_teachers_own_is_shown_as_the_teacher_reads_it(case: Case) -> None:
    table = 'teacher-logits.teacher_prompt={template="{answer}{prompt}"}'
    _, out, _ = case.call("check", "--show", "--set", table)
    assert "scores it (3 tokens)\n  | aab\n  2 'a'  2 'a'  3 'b'" in out


# What students learn from.


def test_what_an_objective_is_on_records_that_are_not_there_yet(case: Case) -> None:
    assert case.find("reverse_kl on teacher-logits is unbiased") == ["ok"]
    assert case.find("jsd on teacher-logits is lower bound", "train.objective.name=jsd") == ["ok"]


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("jsd cannot be trained on `counts`", ["train.objective.name=jsd"]),
        ("`tip` compares student and teacher at", ["train.weights=[{name='tip'}]"]),
        (
            "the teacher as it was recorded, at temperature 1.0",
            ["train.weights=[{name='entropy_gap'}]", "train.objective.temperature=2.0",
             "train.objective.name=lightning", "teacher-logits.record.loss_temperature=2.0"],
        ),
        (
            "`teacher_entropy` reads the teacher's record, and the set holds tokens only",
            ["train.weights=[{name='teacher_entropy'}]", "train.data=rollouts",
             "train.objective.name=cross_entropy"],
        ),
        ("rollouts has one response to each", ["train.weights=[{name='pass_rate'}]"]),
        (
            "`pass_rate` reads whether a response is right, and fresh responses",
            ["train.weights=[{name='pass_rate'}]", "train.data=live"],
        ),
    ],
)  # fmt: skip
def test_what_records_cannot_serve_is_refused_before_they_are_made(
    case: Case, words: str, overrides: list[str]
) -> None:
    counts = "teacher-logits.record.kind=counts"
    assert case.find(words, counts, *overrides) == ["refused"]
    settings = [word for one in (counts, *overrides) for word in ("--set", one)]
    code, _, err = case.call("run", "train", *settings)
    assert (code, words in err) == (78, True)
    assert not list((case.root / "store").glob("rollouts-*"))


def test_a_method_that_a_recipe_cannot_take_says_why(case: Case) -> None:
    code, _, err = case.call("run", "train", "--method", "pass_rate")
    assert code == 78
    assert "[train.compare.pass_rate]: train.weights: `pass_rate` compares the responses" in err
    assert "Set rollouts.n = 4 or more" in err


# End tokens.


def ends_with(directory: Path, letter: str, *more: int) -> None:
    """Make a letter the end token, beside further ids of the generation config."""
    words = tokenizer()
    words.eos_token = letter
    words.save_pretrained(directory)
    for name in ("config.json", "generation_config.json"):
        file = directory / name
        end = words.eos_token_id
        content = json.loads(file.read_text()) | {"eos_token_id": [end, *more] if more else end}
        file.write_text(json.dumps(content))


def test_pi_ref_that_does_not_stop_where_the_teacher_does_is_refused(case: Case) -> None:
    ends_with(case.root / "teacher", "j", 1)
    (refused,) = [one for one in case.findings() if one["level"] == "refused"]
    assert "stops at 1 '<end>'" in refused["message"]
    assert "11 'j'" in refused["message"]
    assert "generation_config.json" in refused["mend"]
    code, _, err = case.call("run", "train")
    assert (code, "would write past the end" in err) == (65, True)
    assert {file.name for file in (case.root / "store").iterdir()} <= {".digests.json"}


def test_pi_ref_that_also_stops_where_the_teacher_does_is_ok(case: Case) -> None:
    ends_with(case.root / "teacher", "j")
    ends_with(case.root / "student", "a", 11)
    assert case.find("stops at the teacher's end token, and at") == ["ok"]


def test_sft_takes_the_end_token_over(tuned: Case) -> None:
    ends_with(tuned.root / "teacher", "j")
    assert tuned.find("stops at the teacher's end token") == ["ok"]


# Lengths.


def test_a_student_of_shorter_context_than_its_sequences_is_refused(tuned: Case) -> None:
    write_model(tuned.root / "student", context=7)
    refused = [one for one in tuned.findings() if one["level"] == "refused"]
    assert "[sft] reads have up to 8" in refused[0]["message"]
    assert "max_length" in refused[0]["mend"]
    assert "refused" not in tuned.find("[sft] reads", "sft.max_length=7")


def test_a_teacher_of_shorter_context_than_the_rollouts_is_refused(case: Case) -> None:
    write_model(case.root / "teacher", context=7)
    assert "refused" in case.find("[teacher-logits] reads have up to 8")


def test_a_context_that_ends_responses_is_noted(case: Case) -> None:
    write_model(case.root / "student", context=7)
    assert case.find("a response ends at 5 tokens, not at max_tokens = 6") == ["note"]


def test_a_prompt_without_room_for_a_response_is_refused(case: Case) -> None:
    write_prompts(case.root / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "ab" * 40}])
    assert case.find("one token of response must fit") == ["refused"]


def test_an_engine_context_that_is_too_short_is_refused(case: Case) -> None:
    assert case.find("max_model_len = 7", "rollouts.run.max_model_len=7") == ["refused"]
    assert case.find("max_model_len = 8", "rollouts.run.max_model_len=8") == []


# What is drawn and trained on.


def test_holding_everything_out_is_refused(tuned: Case) -> None:
    assert tuned.find("leaves [train] nothing to train on", "rollouts.holdout=1") == ["refused"]
    assert tuned.find("1 of 4 prompts are held out", "rollouts.holdout=0.25") == ["ok"]
    assert tuned.find("leaves [sft] nothing to train on", "sft-data.holdout=1") == ["refused"]


def test_several_greedy_responses_are_noted(case: Case) -> None:
    repeated = ("rollouts.n=4", "rollouts.sampling.temperature=0")
    assert case.find("all responses to a prompt are the same", *repeated) == ["note"]
    assert case.find("all responses to a prompt are the same", repeated[0]) == []


def test_likelihood_of_rollouts_is_noted_unless_they_are_right(case: Case) -> None:
    assert case.find("mistakes included", MIXED.format(on="all")) == ["note"]
    assert case.find("mistakes included", MIXED.format(on="right")) == []
    assert case.find("mistakes included") == []


def test_likelihood_of_the_teachers_answers_is_ok(tuned: Case) -> None:
    own = ("train.data=sft-data", "train.objective.name=cross_entropy")
    assert tuned.find("mistakes included", *own) == []
    assert tuned.find("mistakes included", own[1]) == ["note"]
