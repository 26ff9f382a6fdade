// A list of any length of which only the visible rows exist. Arrow keys, page keys, Home and End.
function virtualList(box, { height, label, draw, choose }) {
  let order = new Uint32Array(0);
  let at = -1;
  const space = element("div");
  box.append(space);
  box.tabIndex = 0;
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", label);

  function paint() {
    const first = Math.max(0, Math.floor(box.scrollTop / height) - 4);
    const last = Math.min(order.length, first + Math.ceil(box.clientHeight / height) + 8);
    const rows = [];
    for (let place = first; place < last; place++) {
      const row = draw(order[place]);
      row.id = `row-${place}`;
      row.classList.add("row");
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(place === at));
      row.setAttribute("aria-posinset", String(place + 1));
      row.setAttribute("aria-setsize", String(order.length));
      row.style.top = `${place * height}px`;
      row.addEventListener("click", () => go(place));
      rows.push(row);
    }
    space.replaceChildren(...rows);
    space.style.height = `${order.length * height}px`;
    if (at >= 0) box.setAttribute("aria-activedescendant", `row-${at}`);
  }

  function go(place) {
    if (!order.length) return;
    at = Math.max(0, Math.min(order.length - 1, place));
    const top = at * height;
    if (top < box.scrollTop) box.scrollTop = top;
    if (top + height > box.scrollTop + box.clientHeight) {
      box.scrollTop = top + height - box.clientHeight;
    }
    paint();
    choose(order[at]);
  }

  box.addEventListener("scroll", paint);
  box.addEventListener("keydown", (event) => {
    const page = Math.floor(box.clientHeight / height) - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page,
                    Home: -order.length, End: order.length };
    if (event.key in steps) {
      go(at + steps[event.key]);
      event.preventDefault();
    }
  });
  return {
    show(found) {
      order = found;
      box.scrollTop = 0;
      at = -1;
      go(0);
      if (!found.length) paint();
    },
    step: (by) => go(at + by),
    // Whether the line is in the list; if so, it is chosen.
    choose(line) {
      const place = order.indexOf(line);
      if (place >= 0) go(place);
      return place >= 0;
    },
  };
}
