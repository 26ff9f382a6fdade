"""Drift figures on weights constructed by hand, and the window that collects them."""

import math

import pytest
import torch

from stages.config.objectives import Drift
from stages.training.drift import Guard, ratio_sums, summary, verdict
from stages.training.metrics import Window


def weights(*w: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log q and log b of tokens whose ratio q/b is `w`."""
    ref_lp = torch.linspace(-3.0, -1.0, len(w), dtype=torch.float64)
    return ref_lp + torch.tensor(w, dtype=torch.float64).log(), ref_lp


def test_figures_of_known_weights() -> None:
    found = summary(*ratio_sums(*weights(0.5, 1.0, 1.0, 3.5)).tolist())
    assert found["drift_mean"] == pytest.approx(1.5)
    assert found["drift_chi2"] == pytest.approx((0.25 + 1 + 1 + 12.25) / 4 - 1)
    assert found["drift_sd"] == pytest.approx(math.sqrt(14.5 / 4 - 1.5**2))
    assert found["drift_ess"] == pytest.approx(36 / (4 * 14.5))
    assert found["drift"] == pytest.approx(-(math.log(0.5) + math.log(3.5)) / 4)


def test_the_policy_itself_has_not_drifted() -> None:
    found = summary(*ratio_sums(*weights(1.0, 1.0, 1.0)).tolist())
    assert found == pytest.approx(
        {
            "drift": 0.0,
            "drift_mean": 1.0,
            "drift_sd": 0.0,
            "drift_ess": 1.0,
            "drift_chi2": 0.0,
        }
    )


def test_drift_is_the_divergence_of_the_student_from_the_policy() -> None:
    """Enumerated: every token of a vocabulary of four, as often as the policy draws it."""
    b = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    q = torch.tensor([0.25, 0.25, 0.0625, 0.4375], dtype=torch.float64)
    drawn = torch.repeat_interleave(torch.arange(4), (b * 8).long())
    found = summary(*ratio_sums(q.log()[drawn], b.log()[drawn]).tolist())
    assert found["drift"] == pytest.approx(float((b * (b / q).log()).sum()))
    assert found["drift_chi2"] == pytest.approx(float((q * q / b).sum()) - 1)


def test_one_token_in_forty_thousand_makes_chi2_and_not_the_verdict() -> None:
    w = [1.1] * 21_000 + [0.9] * 21_000 + [2000.0]
    found = summary(*ratio_sums(*weights(*w)).tolist())
    assert found["drift_chi2"] > 90
    assert abs(found["drift"]) < 0.01
    assert verdict(found, Drift()) == ("ok", "")


def test_sums_of_parts_add_up() -> None:
    whole = ratio_sums(*weights(0.2, 0.7, 1.1, 2.0))
    logq, ref_lp = weights(0.2, 0.7, 1.1, 2.0)
    parts = ratio_sums(logq[:1], ref_lp[:1]) + ratio_sums(logq[1:], ref_lp[1:])
    torch.testing.assert_close(whole, parts, equal_nan=True)


def test_an_absurd_ratio_stays_finite() -> None:
    found = summary(*ratio_sums(torch.tensor([0.0]), torch.tensor([-1000.0])).tolist())
    assert all(math.isfinite(value) for value in found.values())
    assert verdict(found, Drift(warn_chi2=1.0))[0] == "warn"


def test_no_tokens_no_figures() -> None:
    assert summary(0.0, 0.0, 0.0, 0.0) == {}


@pytest.mark.parametrize(
    ("drift", "expected"), [(0.4, "ok"), (0.6, "warn"), (2.0, "warn"), (2.1, "stop")]
)
@pytest.mark.parametrize("figure", ["drift", "drift_chi2"])
def test_verdict(figure: str, drift: float, expected: str) -> None:
    found = {"drift": 0.0, "drift_chi2": 0.0, figure: drift}
    suffix = figure.removeprefix("drift")
    limits = Drift.model_validate({f"warn{suffix}": 0.5, f"stop{suffix}": 2.0})
    made, above = verdict(found, limits)
    assert made == expected
    assert (f"> drift.{expected}{suffix} = " in above) == (made != "ok")


@pytest.mark.parametrize(
    ("drift", "teacher", "expected"),
    [
        (0.9, 1.6, ""),  # on its way to a teacher that is far from the policy
        (1.7, 1.6, "drift 1.7 nats a token > drift.warn = 1.6 (as far as the teacher is)"),
        (0.4, 0.2, ""),
        (0.6, 0.2, "drift 0.6 nats a token > drift.warn = 0.5"),
        (0.6, None, "drift 0.6 nats a token > drift.warn = 0.5"),
    ],
)
def test_by_default_the_limit_is_how_far_the_teacher_is(
    drift: float, teacher: float | None, expected: str
) -> None:
    found = {"drift": drift, "drift_chi2": 0.0}
    if teacher is not None:
        found["drift_teacher"] = teacher
    assert verdict(found, Drift()) == ("warn" if expected else "ok", expected)
    # Who sets a number gets that number, wherever the teacher is.
    assert verdict(found, Drift(warn=0.3))[0] == "warn"


def test_a_teacher_is_as_far_from_the_policy_as_the_records_say() -> None:
    """Enumerated, as above: KL(b || p) of a teacher whose tokens the policy drew."""
    b = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    p = torch.tensor([0.125, 0.25, 0.625], dtype=torch.float64)
    drawn = torch.repeat_interleave(torch.arange(3), (b * 4).long())
    logb, logp = b.log()[drawn], p.log()[drawn]
    found = summary(*ratio_sums(logp, logb, logp).tolist())
    assert found["drift_teacher"] == pytest.approx(float((b * (b / p).log()).sum()))
    assert found["drift_teacher"] == found["drift"]  # of a student that has become its teacher
    assert "drift_teacher" not in summary(*ratio_sums(logp, logb).tolist())


def test_without_a_stop_limit_nothing_stops() -> None:
    assert verdict({"drift": 1e9, "drift_chi2": 1e9}, Drift())[0] == "warn"
    silent = Drift.model_validate({"warn": "none"})
    assert verdict({"drift": 1e9, "drift_chi2": 1e9}, silent) == ("ok", "")


def test_window_gives_token_means_over_all_microbatches_and_starts_anew() -> None:
    window = Window()
    logq, ref_lp = weights(0.5, 1.0, 1.5)
    window.add(
        {"loss": torch.tensor([1.0, 2.0]), "logq": logq[:2]},
        ratio_sums(logq[:2], ref_lp[:2]),
        tokens=5,
    )
    window.add(
        {"loss": torch.tensor([6.0]), "logq": logq[2:]}, ratio_sums(logq[2:], ref_lp[2:]), tokens=2
    )
    line = window.flush()
    assert line["loss"] == pytest.approx(3.0)
    assert line["drift_mean"] == pytest.approx(1.0)
    assert "logq" not in line
    window.add({"loss": torch.tensor([4.0]), "logq": logq[:1]}, None, tokens=1)
    again = window.flush()
    assert again["loss"] == pytest.approx(4.0)
    assert "drift_mean" not in again


def test_window_survives_a_checkpoint() -> None:
    logq, ref_lp = weights(0.5, 1.0, 1.5)
    one, other = Window(), Window()
    one.add(
        {"loss": torch.tensor([1.0, 2.0]), "logq": logq[:2]},
        ratio_sums(logq[:2], ref_lp[:2]),
        tokens=5,
    )
    other.add_states([one.state_dict()], torch.device("cpu"))
    for window in (one, other):
        window.add(
            {"loss": torch.tensor([6.0]), "logq": logq[2:]},
            ratio_sums(logq[2:], ref_lp[2:]),
            tokens=2,
        )
    times = ("tokens_per_second", "waiting")
    kept = [{k: v for k, v in w.flush().items() if k not in times} for w in (one, other)]
    assert kept[0] == kept[1]


def test_window_books_waiting() -> None:
    window = Window()
    assert window.waiting(lambda: 7) == 7
    line = window.flush()
    assert 0.0 < line["waiting"] <= 1.0


def guard_over(w: float, steps: range, guard: Guard) -> list[int]:
    """Steps after which a run must stop when every token has weight `w`."""
    stops: list[int] = []
    for step in steps:
        guard.add(ratio_sums(*weights(w, w)))
        if guard.must_stop(step):
            stops.append(step)
    return stops


def test_the_guard_judges_every_tenth_step_and_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard("run", Drift(warn=0.5, stop=2.0))
    assert guard_over(0.5, range(1, 31), guard) == []  # drift 0.69
    assert len(caplog.records) == 1
    assert "(drift 0.69 nats a token > drift.warn = 0.5)" in caplog.text
    assert "Lower the learning rate" in caplog.text
    assert guard_over(1.0, range(31, 41), guard) == []
    assert guard_over(0.5, range(41, 51), guard) == []
    assert len(caplog.records) == 2  # it had come back in between
    assert guard_over(0.1, range(51, 71), guard) == [60, 70]  # drift 2.3
    assert "training stops here" in caplog.text


def test_the_guard_without_limits_or_data_lets_all_pass() -> None:
    assert guard_over(9.0, range(1, 21), Guard("run", None)) == []
    assert not Guard("run", Drift(stop_chi2=0.1)).must_stop(10)


def test_sums_of_a_checkpoint_from_before_there_was_drift_are_read() -> None:
    guard, window = Guard("run", Drift(stop_chi2=2.0)), Window()
    sums = [1.0, 3.0, 9.0]
    guard.add_states([{"sums": sums, "state": "ok"}], torch.device("cpu"))
    window.add_states([{"sums": {"drift": sums}, "positions": 1}], torch.device("cpu"))
    assert guard_over(3.0, range(1, 11), guard) == [10]
    line = window.flush()
    assert line["drift_chi2"] == pytest.approx(8.0)
    assert math.isnan(line["drift"])


def test_the_guard_survives_a_checkpoint() -> None:
    one, other = (Guard("run", Drift(warn_chi2=0.5, stop_chi2=2.0)) for _ in range(2))
    guard_over(3.0, range(1, 6), one)
    other.add_states([one.state_dict()], torch.device("cpu"))
    assert guard_over(0.8, range(6, 11), other) == [10]  # (5 * 9 + 5 * 0.64) / 10 - 1 = 3.82
