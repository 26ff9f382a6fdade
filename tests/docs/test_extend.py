"""Every example of `docs/extend.md` does what the page says."""

from pathlib import Path

import pytest

from tests.docs.extending import extended


def test_objective(tmp_path: Path) -> None:
    copy = extended("Objective", tmp_path)
    copy.run("-c", "\n".join(copy.programs))
    proofs = "tests/stages/objectives/test_proofs.py"
    done = copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", proofs, "-k", "skew_chi2")
    assert " passed" in done
    copy.run("tools/contract_page.py")
    rows = (tmp_path / "docs" / "contract.md").read_text().splitlines()
    assert any(line.startswith("| `skew_chi2` | refused [") for line in rows)


def test_record_kind(tmp_path: Path) -> None:
    copy = extended("Record kind", tmp_path)
    copy.run("-c", "\n".join(copy.programs))


def test_position_loss(tmp_path: Path) -> None:
    copy = extended("Position loss", tmp_path)
    copy.run("-c", "\n".join(copy.programs))


@pytest.mark.parametrize(
    ("section", "weight"),
    [("Position weight", "resolved"), ("Sequence weight and routing", "brevity")],
)
def test_weights(section: str, weight: str, tmp_path: Path) -> None:
    copy = extended(section, tmp_path)
    copy.run("-c", "\n".join(copy.programs))
    proofs = "tests/stages/weights/test_contract.py"
    chosen = f"looks_at_what_it_says and {weight}"
    done = copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", proofs, "-k", chosen)
    assert " passed" in done
