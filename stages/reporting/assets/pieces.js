// Tokens as text. What comes from a set is never markup: it only ever becomes text nodes.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Characters that cannot be seen, or that turn the direction of what follows.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

// Nothing but characters that change the look of one before them, or have none.
const BARE = /^\p{Default_Ignorable_Code_Point}+$/u;

function byCodePoint(letter) {
  return `⟨U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

function pieceReader(columns) {
  const { vocabulary, pieces, piece_off: off, special } = columns;
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const known = new Map();

  // The text of a token; `whole` is false where its bytes are not UTF-8 by themselves.
  return function piece(index) {
    if (known.has(index)) return known.get(index);
    const bytes = pieces.subarray(off[index], off[index + 1]);
    let found;
    if (!bytes.length) found = { text: `⟨${vocabulary[index]}⟩`, whole: false };
    else {
      try {
        const text = strict.decode(bytes);
        const shown = BARE.test(text) ? Array.from(text, byCodePoint).join("")
          : text.replace(HIDDEN, byCodePoint);
        found = { text: shown, whole: true };
      } catch {
        const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"));
        found = { text: `⟨${hex.join(" ")}⟩`, whole: false };
      }
    }
    found.id = vocabulary[index];
    found.special = special[index] === 1;
    known.set(index, found);
    return found;
  };
}

// In running text a line break breaks the line, after a sign that there was a token for it.
function running(piece) {
  return piece.text.replaceAll("\t", "⇥\t").replaceAll("\n", "⏎\n");
}

// In a table everything is on one line and spaces can be seen.
function quoted(piece) {
  return piece.text.replaceAll("\t", "⇥").replaceAll("\n", "⏎").replaceAll(" ", "␣");
}
