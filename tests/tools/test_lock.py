"""Which files of a release the lock keeps, and how a pin is written."""

from typing import Any

import pytest

from tools.lock import Target, expand, hashes, pinned, targets

X86, ARM = Target((3, 11), "x86_64"), Target((3, 11), "aarch64")


def listed(name: str, digest: str) -> dict[str, Any]:
    return {"url": f"https://index.invalid/ab/{name}", "hashes": {"sha256": digest}}


def package(*wheels: str, **fields: Any) -> dict[str, Any]:
    """A release whose wheels' digests are their positions, and whose source's is `s`."""
    return {
        "name": "thing",
        "version": "1.0",
        "wheels": [listed(f"thing-1.0-{tags}.whl", str(i)) for i, tags in enumerate(wheels)],
        "sdist": listed("thing-1.0.tar.gz", "s"),
        **fields,
    }


def test_targets_are_all_supported_pythons_on_all_machines() -> None:
    assert [(t.python, t.machine) for t in targets(">=3.11,<3.13")] == [
        ((3, 11), "x86_64"),
        ((3, 11), "aarch64"),
        ((3, 12), "x86_64"),
        ((3, 12), "aarch64"),
    ]


@pytest.mark.parametrize(
    "tags",
    [
        "py3-none-any",
        "cp311-cp311-manylinux_2_28_x86_64",
        "cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64",
        "cp38-abi3-manylinux_2_17_x86_64",
        "py3-none-manylinux_2_31_x86_64",
    ],
)
def test_wheels_a_target_can_install_are_kept(tags: str) -> None:
    assert hashes(package(tags), [X86]) == ["0"]


@pytest.mark.parametrize(
    "tags",
    [
        "cp312-cp312-manylinux_2_28_x86_64",
        "cp311-cp311-musllinux_1_2_x86_64",
        "cp311-cp311-manylinux_2_28_aarch64",
        "cp311-cp311-win_amd64",
        "cp311-cp311-macosx_11_0_arm64",
        "cp313-cp313t-manylinux_2_28_x86_64",
    ],
)
def test_other_wheels_are_not_and_the_source_stands_in(tags: str) -> None:
    assert hashes(package(tags), [X86]) == ["s"]


def test_source_is_added_for_the_target_without_a_wheel_only() -> None:
    assert hashes(package("cp311-cp311-manylinux_2_28_x86_64"), [X86, ARM]) == ["0", "s"]


def test_a_release_nobody_can_install_is_an_error() -> None:
    release = package("cp312-cp312-manylinux_2_28_x86_64")
    del release["sdist"]
    with pytest.raises(ValueError, match=r"thing 1\.0 has no file for .*x86_64"):
        list(pinned([release], [X86]))


def test_a_marker_is_written_only_where_it_decides_between_targets() -> None:
    everywhere = package("py3-none-any", marker="sys_platform == 'linux'")
    nowhere = package("py3-none-any", marker="sys_platform == 'win32'")
    partly = package("py3-none-any", marker="platform_machine == 'x86_64'")
    texts = [text for _, text in pinned([everywhere, nowhere, partly], [X86, ARM])]
    assert texts == [
        "thing==1.0 \\\n    --hash=sha256:0\n",
        'thing==1.0 ; platform_machine == "x86_64" \\\n    --hash=sha256:0\n',
    ]


def test_own_extras_are_replaced_by_what_they_stand_for() -> None:
    project = {
        "name": "afterglow",
        "optional-dependencies": {"inner": ["torch>=2"], "outer": ["afterglow[inner]", "vllm==1"]},
    }
    assert expand(project, "outer") == ["torch>=2", "vllm==1"]
