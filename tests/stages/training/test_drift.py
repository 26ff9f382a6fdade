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


def test_the_policy_itself_has_not_drifted() -> None:
    found = summary(*ratio_sums(*weights(1.0, 1.0, 1.0)).tolist())
    assert found == pytest.approx(
        {"drift_mean": 1.0, "drift_sd": 0.0, "drift_ess": 1.0, "drift_chi2": 0.0}
    )


def test_sums_of_parts_add_up() -> None:
    whole = ratio_sums(*weights(0.2, 0.7, 1.1, 2.0))
    logq, ref_lp = weights(0.2, 0.7, 1.1, 2.0)
    parts = ratio_sums(logq[:1], ref_lp[:1]) + ratio_sums(logq[1:], ref_lp[1:])
    torch.testing.assert_close(whole, parts)


def test_an_absurd_ratio_stays_finite() -> None:
    found = summary(*ratio_sums(torch.tensor([0.0]), torch.tensor([-1000.0])).tolist())
    assert all(math.isfinite(value) for value in found.values())
    assert verdict(found["drift_chi2"], Drift()) == "warn"


def test_no_tokens_no_figures() -> None:
    assert summary(0.0, 0.0, 0.0) == {}


@pytest.mark.parametrize(
    ("chi2", "expected"), [(0.4, "ok"), (0.6, "warn"), (2.0, "warn"), (2.1, "stop")]
)
def test_verdict(chi2: float, expected: str) -> None:
    assert verdict(chi2, Drift(warn_chi2=0.5, stop_chi2=2.0)) == expected


def test_without_a_stop_limit_nothing_stops() -> None:
    assert verdict(1e9, Drift(warn_chi2=0.5)) == "warn"


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
    guard = Guard("run", Drift(warn_chi2=0.5, stop_chi2=2.0))
    assert guard_over(1.3, range(1, 31), guard) == []  # chi2 0.69
    assert len(caplog.records) == 1
    assert guard_over(1.0, range(31, 41), guard) == []
    assert guard_over(1.3, range(41, 51), guard) == []
    assert len(caplog.records) == 2  # it had come back in between
    assert guard_over(1.8, range(51, 71), guard) == [60, 70]  # chi2 2.24
    assert "training stops here" in caplog.text


def test_the_guard_without_limits_or_data_lets_all_pass() -> None:
    assert guard_over(9.0, range(1, 21), Guard("run", None)) == []
    assert not Guard("run", Drift(stop_chi2=0.1)).must_stop(10)


def test_the_guard_survives_a_checkpoint() -> None:
    one, other = (Guard("run", Drift(warn_chi2=0.5, stop_chi2=2.0)) for _ in range(2))
    guard_over(3.0, range(1, 6), one)
    other.add_states([one.state_dict()], torch.device("cpu"))
    assert guard_over(0.8, range(6, 11), other) == [10]  # (5 * 9 + 5 * 0.64) / 10 - 1 = 3.82
