"""Generated parts of Markdown files: the text between two markers is a command's, the rest ours.

A page may have several blocks: `<!-- generated: NAME -->` begins one with a name, which may be that
of a recipe.
"""

from collections.abc import Sequence
from pathlib import Path

from storage.errors import DataError

BEGIN, END = "<!-- generated -->", "<!-- end of generated -->"


def block_for(path: Path, name: str) -> str:
    """`name` if the file has a block of that name, and otherwise that of the block without one."""
    return name if path.is_file() and _begin(name) in path.read_text() else ""


def _begin(name: str) -> str:
    return f"<!-- generated: {name} -->" if name else BEGIN


def surroundings(path: Path, name: str = "") -> tuple[str, str]:
    """What stands before and after the generated part of a file, its first marker included.

    Args:
        path: The file.
        name: Of the block; empty: the one without a name.

    Raises:
        DataError: there is no such file, or it lacks the markers.
    """
    try:
        content = path.read_text()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    before, begin, rest = content.partition(_begin(name))
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(
            f"{path}: has no block to replace. Put the lines `{_begin(name)}` and `{END}` where "
            "the table should go."
        )
    return before + begin, after


def replace_block(path: Path, text: str, name: str = "") -> None:
    """Put `text` between the markers of the Markdown file `path`.

    Args:
        path: The file.
        text: The new content.
        name: As in `surroundings`.

    Raises:
        DataError: there is no such file, or it lacks the markers.
    """
    before, after = surroundings(path, name)
    path.write_text(f"{before}\n{text}\n{END}{after}")


def write_or_check(path: Path, text: str, arguments: Sequence[str]) -> int:
    """What the script of a page that is generated as a whole does; returns its exit code.

    Args:
        path: The page.
        text: As it should be.
        arguments: Of the script: `--check` writes nothing and fails where the page is another one.
    """
    if list(arguments) == ["--check"]:
        return 0 if path.exists() and path.read_text() == text else 1
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return 0
