// All that is known of one token: its quantities, the teacher's record, each model's likeliest ids.
function number(value) {
  if (!Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 10000) ? value.toExponential(2) : value.toFixed(3);
}

function idTable(title, rows, more = 0, left = 0) {
  const lines = rows.map(({ piece, share, note, realised }) => {
    const bar = element("td", { class: "share" }, number(share));
    bar.style.setProperty("--share", `${Math.min(100, 100 * share)}%`);
    const name = element("td", { class: "piece", title: `id ${piece.id}` }, quoted(piece));
    return element("tr", realised ? { class: "realised" } : {}, name, bar,
                   element("td", {}, realised ? "◀ this token" : note ?? ""));
  });
  if (more > 0) lines.push(element("tr", {}, element("th", {}, `and ${more} more`)));
  if (left > 0) {
    lines.push(element("tr", {}, element("th", {}, "everything else"),
                       element("td", {}, number(left))));
  }
  return element("div", {}, element("h3", {}, title), element("table", {}, ...lines));
}

function detailsOf({ meta, columns, piece }, position, place) {
  const tok = columns.tok[position];
  const about = meta.quantities.map((one) => element("tr", { title: one.about },
    element("th", {}, one.title), element("td", {}, number(columns[one.key][position]))));
  const heading = element("h3", {}, `token ${place + 1}: `, element("code", {}, quoted(piece(tok))),
                          ` (id ${piece(tok).id})`);
  const out = [element("div", {}, heading, element("table", {}, ...about))];

  if (meta.records) {
    const head = [];
    const tail = [];
    const first = columns.entryOff[position];
    const middle = first + columns.heads[position];
    for (let at = first; at < columns.entryOff[position + 1]; at++) {
      const id = columns.ids[at];
      const one = { piece: piece(id), realised: id === tok };
      if (at < middle) head.push({ ...one, share: Math.exp(columns.share[at]) });
      else {
        // Log p of drawn ids, where it is kept: those of earlier positions come first.
        const logp = columns.tail_logp?.[at - columns.headOff[position + 1]];
        const note = logp === undefined ? "" : `log p ${number(logp)}`;
        tail.push({ ...one, share: columns.share[at], note });
      }
    }
    const [headLeft, tailLeft] = [columns.head_left[position], columns.tail_left[position]];
    if (head.length) out.push(idTable("teacher, head", head, headLeft, columns.rest[position]));
    if (tail.length) out.push(idTable("teacher, drawn tail (weights)", tail, tailLeft));
  }
  const k = meta.likeliest;
  for (const name of meta.models) {
    const rows = [];
    let left = 1;
    for (let at = position * k; at < (position + 1) * k; at++) {
      const id = columns[`top:${name}`][at];
      const share = Math.exp(columns[`top_lp:${name}`][at]);
      left -= share;
      rows.push({ piece: piece(id), share, realised: id === tok });
    }
    out.push(idTable(name, rows, 0, Math.max(0, left)));
  }
  if (columns.cand) {
    const width = columns.cand.length / columns.tok.length;
    const ids = Array.from(columns.cand.subarray(position * width, (position + 1) * width));
    const text = ids.map((id) => quoted(piece(id))).join("  ");
    out.push(element("div", {}, element("h3", {}, "likeliest ids of the sampler"),
                     element("code", {}, text)));
  }
  return out;
}
