r"""Where the final answer of a response is: rules of text, before any mathematics.

A response states its answer, in order of preference,

* in a box: the last complete `\boxed{...}` or `\fbox{...}` (and, as a second reading, the run of
  boxes it ends, joined by nothing but commas, `and` or `or`, for answers of several parts);
* in a statement: after the last `answer is`, `answer:`, `correct option is`, `答案是`, `####`, ...,
  up to the end of that sentence;
* at its end: the last expression of the text.

A box and a statement are *marked* answers. docs/verifiers.md shows the rules on cases.
"""

import re
from dataclasses import dataclass
from typing import Literal

Place = Literal["box", "statement", "text"]

_PUNCTUATION = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)} | {
    0x2212: "-",
    0x3000: " ",
    0x3001: ", ",
    0x3002: ". ",
    0x3010: "[",
    0x3011: "]",
}
"""Full-width characters to ASCII. Not NFKC, which would turn x² into x2."""

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;]|and\b|or\b|\\text\{ *(?:and|or) *\}|\\quad\b|\\[,;])*")
_STATEMENT = re.compile(
    r"(?:\banswer(?:\s+to\s[^.\n]{0,80}?)?|\b(?:correct|right)\s+(?:option|choice)|答案|正确选项)"
    r"[*_\s]*(?:is\b|are\b|(?:should|must|would)\s+be\b|应该是|应为|是|为|:|=)[\s:*_]*(?P<said>[^\n]+)"
    r"|^\s*####\s*(?P<marked>[^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.;!?](?:\s|$)")
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Z])\)?(?=[\s.,:;)]|$)")
_LONE_LETTER = re.compile(r"\(?([A-Za-z])\)?[.)]?")


@dataclass(frozen=True)
class FinalAnswer:
    """What a response gives as its answer."""

    place: Place
    said: str
    """The content of the box, the sentence of the statement, or all of the text."""
    readings: tuple[str, ...]
    """Texts from which mathematics may be parsed, the first preferred."""


def plain_punctuation(text: str) -> str:
    """Full-width punctuation, digits and letters as ASCII."""
    return text.translate(_PUNCTUATION)


def final_answer(text: str, *, marked_only: bool) -> FinalAnswer | None:
    """The final answer of `text`, which has plain punctuation.

    Args:
        text: A response.
        marked_only: Whether only a complete box counts, as in a response that was cut: a statement
            may go on after the cut, and the last expression may be anything.
    """
    boxes = _boxes(text)
    if boxes:
        start, stop, content = boxes[-1]
        first = start
        for before, after, _ in reversed(boxes[:-1]):
            if not _BETWEEN_BOXES.fullmatch(text, after, first):
                break
            first = before
        run = (text[first:stop],) if first < start else ()
        return FinalAnswer("box", content, (text[start:stop], *run))
    if marked_only:
        return None
    statements = [match["said"] or match["marked"] for match in _STATEMENT.finditer(text)]
    if statements:
        said = _SENTENCE_END.split(statements[-1], maxsplit=1)[0].strip().strip("*_ ")
        return FinalAnswer("statement", said, (f"the answer is {said}",))
    return FinalAnswer("text", text.strip(), (text,)) if text.strip() else None


def plain(text: str) -> str:
    r"""A short answer without `$`, emphasis, `\text{...}` and the final full stop."""
    return _WRAPPER.sub(r"\1", text).replace("$", "").strip().strip("*_ ").removesuffix(".").strip()


def choice_of(reference: str) -> str | None:
    """The letter that a reference answer to a multiple-choice question consists of, or None."""
    match = re.fullmatch(r"\(?([A-Z])\)?[.)]?", plain(reference))
    return match[1] if match else None


def chosen(answer: FinalAnswer) -> str | None:
    """The letter of multiple choice that a response settles on, or None.

    `B`, `(B)`, `B. 42` and `b` alone are letters; `Bob` and `2x` are none. Without a mark, the last
    line must be the letter.
    """
    said = plain(answer.said)
    if answer.place == "text":
        said = plain(said.splitlines()[-1])
        match = _LONE_LETTER.fullmatch(said)
    else:
        match = _LONE_LETTER.fullmatch(said) or _LETTER.match(said)
    return match[1].upper() if match else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every complete box that lies in no other; one pass."""
    opened: list[tuple[int, int] | None] = []
    boxes: list[tuple[int, int, str]] = []
    for match in _BRACES.finditer(text):
        if match[0] == "{":
            opened.append(None)
        elif match[0] == "}":
            box = opened.pop() if opened else None
            if box is not None:
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()  # it lies in this one
                boxes.append((box[0], match.end(), text[box[1] : match.start()]))
        elif match["box"]:
            opened.append((match.start(), match.end()))
    return boxes
