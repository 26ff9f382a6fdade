// Reading curves and diagrams. Of curves: a line at the nearest step, and the value of every curve
// there. Of diagrams: the nearest mark. The pointer moves it; so do the arrow keys once a picture has
// the focus, and Escape takes it away.
{
  const reading = document.getElementById("reading");

  // What is read, beside the place (x, y) of a picture in its own units.
  function tell(svg, x, y, lines) {
    reading.textContent = lines.join("\n");
    reading.hidden = false;
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const [left, top] = [box.left + x * scale + 12, box.top + y * scale];
    const most = document.documentElement.clientWidth - reading.offsetWidth - 8;
    reading.style.left = `${Math.max(8, Math.min(left, most))}px`;
    reading.style.top = `${Math.max(8, Math.min(top, innerHeight - reading.offsetHeight - 8))}px`;
  }

  // Keys and the pointer choose one of `count` things; `nearest` finds one from a place.
  function readable(svg, { count, nearest, show, hide }) {
    let at = count - 1;
    const go = (index) => {
      at = Math.max(0, Math.min(count - 1, index));
      show(at);
    };
    const away = () => {
      reading.hidden = true;
      hide();
    };
    svg.tabIndex = 0;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const found = nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
      if (found === null) away();
      else go(found);
    });
    svg.addEventListener("pointerleave", away);
    svg.addEventListener("blur", away);
    svg.addEventListener("focus", () => svg.matches(":focus-visible") && go(at));
    svg.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: count - 1 };
      if (event.key in to) {
        go(to[event.key]);
        event.preventDefault();
      } else if (event.key === "Escape") away();
    });
  }

  for (const svg of document.querySelectorAll("svg[data-curves]")) {
    const { left, right, top, bottom, high, series } = JSON.parse(svg.dataset.curves);
    const steps = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))];
    steps.sort((a, b) => a - b);
    const width = Math.max(...series.map((one) => one.name.length));
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("stroke", "currentColor");
    line.setAttribute("stroke-dasharray", "2 2");
    line.setAttribute("y1", top);
    line.setAttribute("y2", bottom);
    const place = (step) => left + (right - left) * (high > 0 ? step / high : 0);

    readable(svg, {
      count: steps.length,
      nearest: (x) => steps.reduce((best, step, index) =>
        Math.abs(place(step) - x) < Math.abs(place(steps[best]) - x) ? index : best, 0),
      show(index) {
        const step = steps[index];
        line.setAttribute("x1", place(step));
        line.setAttribute("x2", place(step));
        svg.append(line);
        const values = series.map((one) => {
          const found = one.points.find(([at]) => at === step);
          return `${one.name.padEnd(width)}  ${found ? found[1].toPrecision(4) : "-"}`;
        });
        tell(svg, place(step), 30, [`step ${step}`, ...values]);
      },
      hide: () => line.remove(),
    });
  }

  for (const svg of document.querySelectorAll("svg")) {
    const marks = [...svg.querySelectorAll("path > title")].map((title) => {
      const mark = title.parentNode;
      const { e: x, f: y } = mark.transform.baseVal.consolidate().matrix;
      title.remove(); // else the browser shows it too
      return { mark, x, y, told: title.textContent };
    });
    if (!marks.length) continue;
    const reach = 18; // units around a mark in which the pointer reads it
    const hide = () => marks.forEach(({ mark }) => mark.classList.remove("read"));
    readable(svg, {
      count: marks.length,
      nearest(x, y) {
        const far = marks.map((one) => Math.hypot(one.x - x, one.y - y));
        const least = Math.min(...far);
        return least <= reach ? far.indexOf(least) : null;
      },
      show(index) {
        hide();
        const { mark, x, y, told } = marks[index];
        mark.classList.add("read");
        tell(svg, x, y + 8, [told]);
      },
      hide,
    });
  }
}
