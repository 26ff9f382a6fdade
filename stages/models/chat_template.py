"""Chat templates as text, wherever a version of transformers has put them.

The same template lies in `chat_template.jinja`, or in `tokenizer_config.json` as a string or as one
of a list of named templates, or beside others in `additional_chat_templates/`. Keys hold a digest
of the file as it is (`stages.models.identity.chat_template_hash`); comparisons look at the text.
Imports neither transformers nor Jinja.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from storage.files.place import Place

DEFAULT = "default"
"""Name of the template that applies where none is asked for."""


def chat_templates(directory: Place) -> dict[str, str]:
    """The chat templates beside a model, by name; empty if there are none."""
    file, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    found: dict[str, str] = {}
    configured: Any = None
    if settings.exists():
        configured = json.loads(settings.read_text()).get("chat_template")
    if isinstance(configured, str):
        found[DEFAULT] = configured
    for one in cast(list[Any], configured) if isinstance(configured, list) else []:
        if isinstance(one, dict) and "name" in one and "template" in one:
            named = cast(dict[str, Any], one)
            found[str(named["name"])] = str(named["template"])
    if file.exists():
        found = {DEFAULT: file.read_text()}
        if isinstance(directory, Path):
            others = sorted((directory / "additional_chat_templates").glob("*.jinja"))
            found |= {other.stem: other.read_text() for other in others}
    return {name: text for name, text in found.items() if text}


def chat_template(directory: Place) -> str | None:
    """The text of the template that applies to a dialogue without tools, or None."""
    return chat_templates(directory).get(DEFAULT)


def template_digest(directory: Place) -> str:
    """sha256 of the text of the default template; empty without one.

    Blind to where the text is kept, to line ends, and to a line end after it, which Jinja drops.
    """
    text = chat_template(directory)
    return text_digest(text) if text else ""


def text_digest(text: str) -> str:
    """As `template_digest`, of the text of a template."""
    return _sha256(_plain(text))


def same_template(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two identities (of models, or of the tokenizer of a set) have one chat template.

    Args:
        ours: `chat_template`, the digest of the file, and `template`, that of the text, which sets
            made by earlier versions lack.
        theirs: The same of the other; both may also have `directory`, where the files are.
    """
    if ours.get("chat_template") == theirs.get("chat_template"):
        return True
    if "template" in ours and "template" in theirs:
        return ours["template"] == theirs["template"]
    return any(
        old.get("chat_template") in _spellings(new["directory"])
        for old, new in ((ours, theirs), (theirs, ours))
        if new.get("directory") is not None
    )


def _spellings(directory: Place) -> set[str]:
    """What `chat_template_hash` gives for the template in `directory`, wherever it is kept."""
    text = chat_template(directory)
    if text is None:
        return {""}
    named = [{"name": name, "template": one} for name, one in chat_templates(directory).items()]
    return {_sha256(text), _sha256(json.dumps(text)), _sha256(json.dumps(named))}


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").removesuffix("\n")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
