"""How tables are laid on top of each other: recipe, files, overrides, `compare` tables."""

from stages.table import Layers

_EXCLUSIVE = (("steps", "epochs"), ("epochs", "steps"), ("tau", "entries"), ("entries", "tau"))
_SOURCES = (("path", "task"), ("task", "path"), ("text", "task"), ("task", "text"))
_CHOOSERS = ("kind", "name")


def merge(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    """`base` with `over` laid on top, table by table; neither argument is changed.

    Of fields that exclude each other, naming one takes the other back. A table that names another
    source (a file instead of a task) replaces the one below, whose other fields spoke of the old
    source. A table that names another `kind` or `name` keeps the options below as far as the new
    one has them; see `Layers`.
    """
    if any(new in over and old not in over and base.get(old) for new, old in _SOURCES):
        return dict(over)
    out = Layers(base)
    for name, value in over.items():
        below = out.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            out[name] = merge(below, value)
        else:
            out[name] = value
    for named, other in _EXCLUSIVE:
        if named in over and other not in over:
            out.pop(other, None)
    chosen_anew = any(name in over and over[name] != base.get(name) for name in _CHOOSERS)
    before = base.keys() if chosen_anew else _inherited(base)
    set_here = over.keys() - _inherited(over)
    out.inherited = frozenset({*before, *_inherited(over)} - set_here)
    return out


def _inherited(table: dict[str, object]) -> frozenset[str]:
    return table.inherited if isinstance(table, Layers) else frozenset()
