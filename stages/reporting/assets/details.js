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
                   element("td", realised ? { title: "this token" } : {},
                           realised ? "◀" : note ?? ""));
  });
  if (more > 0) lines.push(element("tr", {}, element("th", {}, `and ${more} more`)));
  if (left > 0) {
    lines.push(element("tr", {}, element("th", {}, "everything else"),
                       element("td", {}, number(left))));
  }
  return element("div", {}, element("h3", {}, title), element("table", {}, ...lines));
}

// A line for each quantity, a column for each of the models, or one for what the set itself holds.
function quantityTable({ meta, columns }, position, models, chosen) {
  const found = meta.quantities.filter((one) => models.includes(one.model));
  const names = [...new Set(found.map((one) => one.short))];
  const lines = names.map((name) => {
    const cells = models.map((model) => {
      const one = found.find((each) => each.model === model && each.short === name);
      const kind = one?.key === chosen ? "chosen" : null;
      return element("td", { class: kind }, one ? number(columns[one.key][position]) : "-");
    });
    const about = found.find((one) => one.short === name).about;
    return element("tr", { title: about }, element("th", {}, name), ...cells);
  });
  const heads = models.map((model) => element("th", { scope: "col" }, model));
  if (models[0] !== null) lines.unshift(element("tr", {}, element("th"), ...heads));
  return element("table", {}, ...lines);
}

// Log-probability that a model gives the token, out of the quantities it stands in; NaN without any.
function logOf({ columns }, name, position) {
  const gap = columns[`gap:${name}`];
  if (gap) return -columns.surprise[position] - gap[position];
  const drift = columns[`drift:${name}`];
  return drift ? drift[position] - columns.drawn[position] : NaN;
}

function detailsOf(page, position, place, chosen) {
  const { meta, columns, piece } = page;
  const tok = columns.tok[position];
  const heading = element("h3", {}, `token ${place + 1}: `, element("code", {}, quoted(piece(tok))),
                          ` (id ${piece(tok).id})`);
  const out = [element("div", {}, heading, quantityTable(page, position, [null], chosen))];
  if (meta.models.length) {
    out.push(element("div", {}, element("h3", {}, "what the models say of it"),
                     quantityTable(page, position, meta.models, chosen)));
  }

  const head = [];
  const tail = [];
  if (meta.records) {
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
  }
  // What is to be compared stands side by side: the teacher, and the models before and after.
  out.push(element("div", { class: "break" }));
  if (head.length) {
    out.push(idTable("teacher, head", head, columns.head_left[position], columns.rest[position]));
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
    const own = Math.exp(logOf(page, name, position));
    if (!rows.some((one) => one.realised) && Number.isFinite(own)) {
      rows.push({ piece: piece(tok), share: own, realised: true });
      left -= own;
    }
    out.push(idTable(name, rows, 0, Math.max(0, left)));
  }
  if (tail.length) {
    out.push(idTable("teacher, drawn tail (weights)", tail, columns.tail_left[position]));
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
