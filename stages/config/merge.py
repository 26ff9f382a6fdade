"""How tables are laid on top of each other: recipe, files, overrides, `compare` tables."""


def plain_names(tables: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """`tables`, whose names become part of a node's name.

    Raises:
        ValueError: a name has characters other than letters, digits, - and _.
    """
    for name in tables:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"`{name}`: use letters, digits, - and _ only")
    return tables


_EXCLUSIVE = (("steps", "epochs"), ("epochs", "steps"), ("tau", "entries"), ("entries", "tau"))
_SOURCES = (("path", "task"), ("task", "path"), ("text", "task"), ("task", "text"))


def merge(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    """`base` with `over` laid on top, table by table; neither argument is changed.

    Of fields that exclude each other, naming one takes the other back; and a table that names
    another source (a file instead of a task) replaces the one below, whose other fields spoke of
    the old source.
    """
    if any(new in over and old not in over and base.get(old) for new, old in _SOURCES):
        return dict(over)
    out = dict(base)
    for name, value in over.items():
        below = out.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            out[name] = merge(below, value)
        else:
            out[name] = value
    for named, other in _EXCLUSIVE:
        if named in over and other not in over:
            out.pop(other, None)
    return out
