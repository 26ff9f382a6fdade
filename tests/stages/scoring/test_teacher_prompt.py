"""The teacher under a prompt of its own: the right text, the right positions, refusals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages import teacher_logits
from stages.attribution.verify import Settings, verify_teacher
from stages.config.corpus import Tokenizer
from stages.config.data import PromptSource
from stages.config.records import TeacherLogits, TeacherPrompt
from stages.job import Job
from stages.models.descent import check_prompts_shared
from stages.models.model import load_tokenizer
from stages.models.tokenizer import make_tokenizer
from stages.scoring.teacher_prompt import TeacherPrompts
from storage.errors import ConfigError, DataError
from storage.manifest import Manifest, read_manifest
from storage.rows import Rows
from tests.stages.scoring.cases import LETTERS, SHAPE, load, log_probs, write_teacher
from tests.stages.test_teacher_logits import job_of, read_all, write_sequences
from tests.world import random_model, run, tokenizer

CONTEXT = 64
CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> PromptSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSource(path=str(path))


def some_rows(count: int = 30) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def text(most: int) -> str:
        return "".join(rng.choice(list(LETTERS), int(rng.integers(1, most))))

    return [{"prompt": text(8), "solution": text(12), "number": n} for n in range(count)]


def answers(directory: Path, rows: Sequence[Mapping[str, Any]], each: int = 2) -> Rows:
    """Sequences with the prompts of `rows` as the tokenizer in `directory` gives them."""
    rng, words = np.random.default_rng(1), load_tokenizer(directory)
    items: list[dict[str, Any]] = []
    for number in rng.permutation(len(rows)):
        for sample in range(each):
            length = int(rng.integers(1, 14))
            items.append(
                {
                    "seq_id": int(number) * each + sample,
                    "prompt_id": int(number),
                    "sample": sample,
                    "finish": 0,
                    "outcome": -1,
                    "prompt": words(rows[number]["prompt"])["input_ids"],
                    "tok": rng.integers(2, 2 + len(LETTERS), length),
                    "ref_lp": -rng.random(length),
                    "cand": np.concatenate([rng.permutation(90)[:4] for _ in range(length)]),
                }
            )
    return Rows.from_sequences(items)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("teacher")
    return write_teacher(directory, context=CONTEXT)


def own_job(
    tmp_path: Path, teacher: Path, rows: list[dict[str, Any]], template: str | None, **more: Any
) -> Job[TeacherLogits]:
    source = write_rows(tmp_path / "prompts.jsonl", rows)
    if not (tmp_path / "rollouts").exists():
        made = answers(teacher, rows)
        parts = [made.slice(0, 30), made.slice(30, 50), made.slice(50, len(made))]
        write_sequences(tmp_path / "rollouts", parts, teacher)
    if template is not None:
        more["teacher_prompt"] = {"template": template, "prompts": source.model_dump()}
    name = "plain" if template is None else "own"
    return job_of(tmp_path / name, teacher, tmp_path / "rollouts", **more)


def everything(job: Job[TeacherLogits], manifest: Manifest) -> Rows:
    return Rows.concat([read_all(job.site, part) for part in manifest.parts])


# ---------------------------------------------------------------------------------------------
# What is scored


@pytest.mark.parametrize("record", [{"tau": 0.05}, {"kind": "counts"}, {"kind": "top_k", "k": 5}])
def test_the_same_prompt_gives_the_same_records(
    tmp_path: Path, teacher: Path, record: dict[str, Any]
) -> None:
    rows = some_rows()
    plain = own_job(tmp_path, teacher, rows, None, record=record)
    own = own_job(tmp_path, teacher, rows, "{prompt}", record=record)
    expected, found = (everything(job, run(job)) for job in (plain, own))
    assert expected.columns.keys() == found.columns.keys()
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(values, found[name], err_msg=name)


def test_responses_are_scored_after_the_teachers_prompt(tmp_path: Path, teacher: Path) -> None:
    """Against plain float32 forwards, position by position; one position off would show."""
    rows = some_rows()
    job = own_job(tmp_path, teacher, rows, "{solution}{prompt}{number}")
    manifest = run(job)
    scored = everything(job, manifest)
    source = Rows.concat(
        [read_all(tmp_path / "rollouts", p) for p in read_manifest(tmp_path / "rollouts").parts]
    )
    np.testing.assert_array_equal(scored["prompt"], source["prompt"])
    words = load_tokenizer(teacher)
    shown: list[dict[str, Any]] = []
    for index in range(len(source)):
        one = source.sequence(index)
        row = rows[one["prompt_id"]]
        text = f"{row['solution']}{row['prompt']}{row['number']}"
        shown.append({**one, "prompt": words(text)["input_ids"]})
    log_p_TV = log_probs(load(teacher), Rows.from_sequences(shown))
    expected_T = log_p_TV[np.arange(source.tokens), source["tok"]]
    np.testing.assert_allclose(scored["lp"], expected_T, atol=1e-3)
    late_T = np.roll(log_p_TV, -1, axis=0)[np.arange(source.tokens), source["tok"]]
    assert np.abs(scored["lp"] - late_T).mean() > 1
    student_T = log_probs(load(teacher), source)[np.arange(source.tokens), source["tok"]]
    assert np.abs(scored["lp"] - student_T).mean() > 0.1
    assert manifest.meta["teacher_prompt"]["template"] == "{solution}{prompt}{number}"


def trained_to_look_back(directory: Path) -> Path:
    """A teacher that has learned, in a second, to answer `?` with the letter before it."""
    model = random_model(0, **SHAPE)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    question = 2 + LETTERS.index("?")
    for _ in range(150):
        hint_N = torch.randint(2, 2 + len(LETTERS), (256,))
        plain_N = torch.rand(256) < 0.3  # asked without a hint, anything may be the answer
        ids_NT = torch.stack([hint_N, torch.full_like(hint_N, question), hint_N], 1)
        ids_NT[plain_N, 0] = 0
        loss = torch.nn.functional.cross_entropy(model(ids_NT).logits[:, 1], ids_NT[:, 2])
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.save_pretrained(directory)
    tokenizer(LETTERS).save_pretrained(directory)
    return directory


def test_a_privileged_prompt_raises_log_p_of_the_answer(tmp_path: Path) -> None:
    teacher = trained_to_look_back(tmp_path / "teacher")
    rows = [{"prompt": "?", "solution": letter} for letter in LETTERS if letter != "?"]
    items = [
        {"seq_id": n, "prompt_id": n, "sample": 0, "finish": 0, "outcome": 1, "ref_lp": [-1.0]}
        | {"prompt": [2 + LETTERS.index("?")], "tok": [2 + LETTERS.index(row["solution"])]}
        for n, row in enumerate(rows)
    ]
    write_sequences(tmp_path / "rollouts", [Rows.from_sequences(items)], teacher, candidates=0)
    lp: list[np.ndarray] = []
    for template in (None, "{solution}{prompt}"):
        job = own_job(tmp_path, teacher, rows, template, record={"candidates": 0})
        lp.append(everything(job, run(job))["lp"])
    plain, privileged = lp
    assert plain.mean() < -3.0  # 87 answers are possible
    assert privileged.mean() > -0.5
    assert np.mean(privileged > plain + 1) > 0.95


def test_tau_is_calibrated_under_the_teachers_prompt(tmp_path: Path, teacher: Path) -> None:
    taus: list[float] = []
    for template in (None, "{solution}{prompt}"):
        job = own_job(tmp_path, teacher, some_rows(), template, record={"entries": 9.0})
        manifest = run(job)
        taus.append(manifest.meta["record"]["tau"])
        assert everything(job, manifest)["nu"].mean() == pytest.approx(9.0, rel=0.02)
    assert taus[0] != taus[1]


def test_the_file_is_read_once_for_each_part(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = own_job(tmp_path, teacher, some_rows(), "{prompt}", run={"tokens_per_batch": 64})
    monkeypatch.setattr(teacher_logits, "_BATCHES", 1)  # many windows to a part
    passes: list[int] = []
    hold = TeacherPrompts.hold

    def counted(self: TeacherPrompts, prompt_ids: Any) -> None:
        hold(self, prompt_ids)
        passes.append(len(self._held))

    monkeypatch.setattr(TeacherPrompts, "hold", counted)
    manifest = run(job)
    found = [len(set(read_all(job.site, part)["prompt_id"])) for part in manifest.parts]
    assert passes == found


# ---------------------------------------------------------------------------------------------
# What the teacher reads


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a chat template that shows roles."""
    directory = tmp_path_factory.mktemp("chat")
    make_tokenizer(Tokenizer(vocab_size=259), [], directory)
    (directory / "chat_template.jinja").write_text(CHAT)
    return directory


def prompts_of(
    source: PromptSource, template: str, tokenizer: Path, compare: bool = False
) -> TeacherPrompts:
    return TeacherPrompts.of(
        TeacherPrompt(template=template, prompts=source), tokenizer, compare=compare
    )


def shown(prompts: TeacherPrompts, number: int) -> str:
    prompts.hold([number])
    return prompts.tokenizer.decode(prompts[number])


def test_the_template_becomes_the_message_of_the_user(tmp_path: Path, chat: Path) -> None:
    talk = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "2+2"},
    ]
    source = write_rows(
        tmp_path / "p.jsonl",
        [{"prompt": "2+3", "hint": "five {x}"}, {"prompt": talk, "hint": 4}],
    )
    prompts = prompts_of(source, "{prompt} {{hint}}: {hint}", chat)
    assert shown(prompts, 0) == "[user]2+3 {hint}: five {x}[assistant]"
    assert shown(prompts, 1) == (
        "[system]be brief[user]hi[assistant]yes?[user]2+2 {hint}: 4[assistant]"
    )


def test_fields_of_any_name_and_of_a_task(tmp_path: Path, chat: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [{"q": "1+1", "a": "2", "other": 0.5}])
    source = PromptSource(path=str(tmp_path / "p.jsonl"), field="q", answer_field="a")
    text = shown(prompts_of(source, "{answer}{other}{prompt}{q}", chat), 0)
    assert text == "[user]20.51+11+1[assistant]"
    task = PromptSource(task="addition", first=7, limit=5)
    made = prompts_of(task, "{prompt}|{answer}", chat)
    assert shown(made, 11).startswith("[user]")
    with pytest.raises(DataError, match=r"task addition: has no row 12, the prompt"):
        made.hold([8, 12])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, r"row 1: no field `hint`, where .* needs a string or a number"),
        ({"prompt": "x", "hint": None}, "row 1: no field `hint`"),
        ({"prompt": "x", "hint": ["y"]}, "row 1: a list in field `hint`"),
        ({"prompt": "x", "hint": True}, "row 1: a bool in field `hint`"),
        ({"hint": "x"}, "row 1: no field `prompt`"),
        ({"prompt": [{"role": "system", "content": "x"}], "hint": "y"}, "no user message"),
        ({"prompt": "", "hint": "x"}, "row 1: the teacher's prompt is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, chat: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.jsonl"
    source = write_rows(path, [{"prompt": "a", "hint": "b"}, row])
    prompts = prompts_of(source, "{prompt}{hint}", chat)
    prompts.hold([0])  # rows nobody asks for are nobody's business
    with pytest.raises(DataError, match=message) as caught:
        prompts.hold([0, 1])
    assert str(path) in str(caught.value)


def test_another_file_than_the_students_is_found_out(tmp_path: Path, teacher: Path) -> None:
    rows = some_rows()
    job = own_job(tmp_path, teacher, rows, "{prompt}")
    write_rows(tmp_path / "prompts.jsonl", [rows[-1], *rows[:-1]])
    with pytest.raises(DataError, match=r"prompts.jsonl, row \d+: is not the prompt of sequence"):
        run(job)


def test_a_student_with_another_chat_template_cannot_be_compared(
    tmp_path: Path, teacher: Path, chat: Path
) -> None:
    source = write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}])
    rows = answers(chat, [{"prompt": "not a"}], each=1)
    prompts_of(source, "{prompt}", chat, compare=False).ensure(rows)
    with pytest.raises(DataError, match="is not the prompt of sequence 0"):
        prompts_of(source, "{prompt}", chat, compare=True).ensure(rows)


def test_prompts_must_be_given(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher_prompt\.prompts"):
        TeacherPrompts.of(TeacherPrompt(), teacher, compare=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no fields {{at all}}", "has no fields"),
        ("{}", r"has the field `\{\}`"),
        ("{0}", r"has the field `\{0\}`"),
        ("{prompt.x}", r"has the field `\{prompt.x\}`"),
        ("{prompt!r}", r"has the field `\{prompt!r\}`"),
        ("{prompt:>9}", r"has the field `\{prompt:>9\}`"),
        ("{prompt", "expected '}'"),
    ],
)
def test_a_template_has_plain_fields_only(template: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherPrompt(template=template)


# ---------------------------------------------------------------------------------------------
# Who may read such records


def test_the_teacher_cannot_be_run_again_on_what_is_stored(tmp_path: Path, teacher: Path) -> None:
    job = own_job(tmp_path, teacher, some_rows(), "{solution}{prompt}")
    manifest = run(job)
    with pytest.raises(DataError, match="prompts of its own"):
        check_prompts_shared(job.directory, manifest)
    with pytest.raises(DataError, match="prompts of its own"):
        verify_teacher(job.inputs["teacher"], [job.directory], Settings())
    check_prompts_shared(job.directory, replace(manifest, meta={"record": {}}))
