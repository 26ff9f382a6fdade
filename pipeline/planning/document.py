"""Generated parts of Markdown files: the text between two markers is a command's, the rest ours."""

from pathlib import Path

from storage.errors import DataError

BEGIN, END = "<!-- generated -->", "<!-- end of generated -->"


def surroundings(path: Path) -> tuple[str, str]:
    """What stands before and after the generated part of a file.

    Raises:
        DataError: there is no such file, or it lacks the markers.
    """
    try:
        content = path.read_text()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(
            f"{path}: has no block to replace. Put the lines `{BEGIN}` and `{END}` where the "
            "table should go."
        )
    return before, after


def replace_block(path: Path, text: str) -> None:
    """Put `text` between the markers of the Markdown file `path`.

    Raises:
        DataError: there is no such file, or it lacks the markers.
    """
    before, after = surroundings(path)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
