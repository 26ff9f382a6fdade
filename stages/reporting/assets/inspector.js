// The token inspector: choose a quantity, an order and a sequence; look at its tokens one by one.
async function startInspector(root, text) {
  const { meta, columns } = await unpack(text);
  const piece = pieceReader(columns);
  const total = columns.seq_id.length;
  const mixed = new Set(columns.holdout).size > 1;
  let quantity = meta.quantities[0];

  function choice(label, entries, changed) {
    const options = entries.map(([value, shown]) => element("option", { value }, shown));
    const made = element("select", { "aria-label": label }, ...options);
    made.addEventListener("change", changed);
    return [element("label", {}, label, made), made];
  }
  const [quantityLabel, quantityBox] = choice(
    "colour", meta.quantities.map((one) => [one.key, one.title]), () => refresh());
  const [orderLabel, orderBox] = choice("order", [
    ["mean", "worst mean first"], ["worst", "worst token first"], ["length", "longest first"],
    ["id", "by number"]], () => refresh());
  const outcomes = [...new Set(columns.outcome)].sort((a, b) => a - b);
  const [outcomeLabel, outcomeBox] = choice("outcome", [["", "all"],
    ...outcomes.map((code) => [String(code), meta.outcomes[code] ?? code])], () => refresh());
  const [keptLabel, keptBox] = choice("show", [["kept", "sequences with tokens"],
    ["all", "all sequences"]], () => refresh());
  const numberBox = element("input", { "aria-label": "go to sequence", inputmode: "numeric",
    size: 8, placeholder: "number" });
  numberBox.addEventListener("change", () => goTo(Number(numberBox.value)));
  const count = element("span", { role: "status" });
  const low = element("span");
  const high = element("span");
  const scale = element("span", { class: "scale" });
  const bar = element("div", { class: "bar" }, quantityLabel, orderLabel,
    outcomes.length > 1 ? outcomeLabel : null, keptLabel,
    element("label", {}, "go to", numberBox), count,
    element("span", {}, low, " ", scale, " ", high));
  const listBox = element("div", { class: "list" });
  const reader = element("div", { class: "reader" });
  const details = element("div", { class: "details", "aria-live": "polite" });
  root.replaceChildren(bar, listBox, reader, details);

  const value = (line) => columns[`${orderBox.value === "worst" ? "worst" : "mean"}:${quantity.key}`][line];
  const badness = { low: (x) => -x, high: (x) => x, large: Math.abs };

  const list = virtualList(listBox, {
    height: 24,
    label: "sequences",
    draw(line) {
      const part = mixed && columns.holdout[line] ? " held out" : "";
      return element("div", columns.kept[line] ? {} : { class: "absent" },
        element("span", {}, `${columns.seq_id[line]}  (${columns.length[line]})${part}`),
        element("span", {}, meta.outcomes[columns.outcome[line]] ?? ""),
        element("span", {}, number(value(line))));
    },
    choose: read,
  });

  // A colour for a value: orange is bad, blue is good where the quantity has two signs.
  function tint(found) {
    const share = Math.max(-1, Math.min(1, found / quantity.scale));
    const bad = badness[quantity.worst](share);
    const name = quantity.worst === "large" ? (share < 0 ? "--low" : "--high")
      : bad > 0 ? "--low" : "--high";
    return [`color-mix(in srgb, var(${name}) ${Math.round(70 * Math.abs(share))}%, transparent)`,
            bad > 0.5];
  }

  function refresh() {
    quantity = meta.quantities.find((one) => one.key === quantityBox.value);
    const lines = [];
    for (let line = 0; line < total; line++) {
      if (outcomeBox.value !== "" && columns.outcome[line] !== Number(outcomeBox.value)) continue;
      if (keptBox.value === "kept" && !columns.kept[line]) continue;
      lines.push(line);
    }
    const keys = new Float64Array(total);
    for (const line of lines) {
      keys[line] = orderBox.value === "id" ? -columns.seq_id[line]
        : orderBox.value === "length" ? columns.length[line]
        : badness[quantity.worst](value(line));
    }
    count.textContent = `${lines.length.toLocaleString("en")} sequences`;
    const [least, most] = [quantity.signed ? -quantity.scale : 0, quantity.scale];
    low.textContent = number(least);
    high.textContent = number(most);
    const stops = Array.from({ length: 9 }, (_, i) => tint(least + ((most - least) * i) / 8)[0]);
    scale.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    scale.title = quantity.about;
    if (!lines.length) {
      reader.replaceChildren("No sequence is like that.");
      details.replaceChildren();
    }
    list.show(Uint32Array.from(lines).sort((a, b) => keys[b] - keys[a] || a - b));
  }

  // Any sequence that was read, also one that the choices leave out of the list.
  function goTo(number) {
    const line = columns.seq_id.indexOf(number);
    if (numberBox.value === "") return;
    if (line < 0) {
      count.textContent = `no sequence ${numberBox.value} here`;
      return;
    }
    if (list.choose(line)) return;
    outcomeBox.value = "";
    keptBox.value = "all";
    refresh();
    list.choose(line);
  }

  function read(line) {
    const kept = columns.kept[line] - 1;
    const outcome = meta.outcomes[columns.outcome[line]];
    const about = [`sequence ${columns.seq_id[line]}`, `prompt ${columns.prompt_id[line]}`,
      `sample ${columns.sample[line]}`, `${columns.length[line]} tokens`,
      `ended by ${meta.finish[columns.finish[line]]}`, outcome === "unknown" ? null : outcome];
    const heading = element("div", {}, element("strong", {}, about.filter(Boolean).join(", ")));
    if (kept < 0) {
      reader.replaceChildren(heading, "Its tokens are not in this page. `afterglow inspect SET " +
        `--only ${columns.seq_id[line]}\` shows them.`);
      details.replaceChildren();
      return;
    }
    const prompt = Array.from(
      columns.prompt.subarray(columns.prompt_off[kept], columns.prompt_off[kept + 1]),
      (index) => running(piece(index))).join("");
    const tokens = element("div", { class: "text", role: "group", "aria-label": "response" });
    const [start, stop] = [columns.tok_off[kept], columns.tok_off[kept + 1]];
    const values = columns[quantity.key];
    let worst = start;
    for (let position = start; position < stop; position++) {
      const one = piece(columns.tok[position]);
      const token = element("span", { class: "token", tabindex: "-1", "data-at": position },
        running(one));
      const [colour, bad] = tint(values[position]);
      token.style.background = colour;
      token.classList.toggle("bad", bad);
      token.classList.toggle("mark", !one.whole || one.special);
      token.setAttribute("aria-label", `${one.text}, ${number(values[position])}`);
      tokens.append(token);
      const [found, best] = [values[position], values[worst]].map(badness[quantity.worst]);
      if (found > best) worst = position;
    }
    reader.replaceChildren(heading, element("div", { class: "text prompt", tabindex: "0",
      "aria-label": "prompt" }, prompt), tokens);

    let now = null;
    function look(token) {
      if (!token || token === now) return;
      now?.classList.remove("now");
      if (now) now.tabIndex = -1;
      now = token;
      now.classList.add("now");
      now.tabIndex = 0;
      const position = Number(token.dataset.at);
      details.replaceChildren(
        ...detailsOf({ meta, columns, piece }, position, position - start, quantity.key));
    }
    tokens.addEventListener("pointerover", (event) => look(event.target.closest(".token")));
    tokens.addEventListener("focusin", (event) => look(event.target.closest(".token")));
    tokens.addEventListener("keydown", (event) => {
      const to = { ArrowRight: now?.nextSibling, ArrowLeft: now?.previousSibling,
                   Home: tokens.firstChild, End: tokens.lastChild }[event.key];
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (to) to.focus();
      else if (by) {
        list.step(by);
        reader.querySelector(".token.now")?.focus();
      } else return;
      event.preventDefault();
    });
    details.replaceChildren();
    look(tokens.children[worst - start]);
  }

  refresh();
  root.dataset.ready = "true";
}

{
  const root = document.getElementById("inspector");
  const data = document.getElementById("inspector-data");
  if (root && data) {
    startInspector(root, data.textContent).catch((error) => {
      root.replaceChildren(`The inspector could not be drawn: ${error}`);
    });
  }
}
