"""What CONTRIBUTING.md promises of the structure; circles and layers are in test_imports.py."""

from tools import house


def test_few_calls_lead_to_the_loss() -> None:
    calls = house.train_once()
    assert calls[0] == "pipeline/cli.py:main"
    assert calls[-1].startswith("stages/objectives/")
    assert len(calls) - 1 <= 10


def test_an_extension_touches_few_files() -> None:
    touched = house.touch_points(house.EXTEND.read_text())
    assert set(touched) == {
        "Objective", "Record kind", "Stage", "Position loss", "Position weight",
        "Sequence weight and routing",
    }  # fmt: skip
    for one_file_and_one_line in ("Objective", "Position weight", "Sequence weight and routing"):
        assert sorted(touched[one_file_and_one_line].values()) == [0, 1]
    assert len(touched["Record kind"]) <= 4
    assert len(touched["Stage"]) <= 3


def test_touch_points_are_counted() -> None:
    page = """# Page
## Thing
```python
# stages/thing.py
x = 1
```
```diff
# stages/list.py
 a
+b
+c
```
```diff
# tests/other.py
+d
```
## Prose
none
"""
    assert house.touch_points(page) == {"Thing": {"stages/thing.py": 0, "stages/list.py": 2}}
