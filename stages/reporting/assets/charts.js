// Reading curves: a line at the nearest step, and the value of every curve there.
// The pointer moves it; so do the arrow keys once a chart has the focus, and Escape takes it away.
{
  const reading = document.getElementById("reading");

  for (const svg of document.querySelectorAll("svg[data-curves]")) {
    const { left, right, top, bottom, high, series } = JSON.parse(svg.dataset.curves);
    const steps = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))];
    steps.sort((a, b) => a - b);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("stroke", "currentColor");
    line.setAttribute("stroke-dasharray", "2 2");
    line.setAttribute("y1", top);
    line.setAttribute("y2", bottom);
    let at = steps.length - 1;

    const show = (index) => {
      at = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[at];
      const x = left + (right - left) * (high > 0 ? step / high : 0);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      svg.append(line);
      const width = Math.max(...series.map((one) => one.name.length));
      const lines = series.map((one) => {
        const found = one.points.find(([at]) => at === step);
        return `${one.name.padEnd(width)}  ${found ? found[1].toPrecision(4) : "-"}`;
      });
      reading.textContent = [`step ${step}`, ...lines].join("\n");
      reading.style.fontFamily = "monospace";
      reading.hidden = false;
      const box = svg.getBoundingClientRect();
      const place = box.left + (x / svg.viewBox.baseVal.width) * box.width + 12;
      reading.style.left = `${Math.min(place, innerWidth - reading.offsetWidth - 8)}px`;
      reading.style.top = `${Math.max(8, box.top + 30)}px`;
    };
    const hide = () => {
      reading.hidden = true;
      line.remove();
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const wanted = ((x - left) / (right - left)) * high;
      let nearest = 0;
      steps.forEach((step, index) => {
        if (Math.abs(step - wanted) < Math.abs(steps[nearest] - wanted)) nearest = index;
      });
      show(nearest);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("focus", () => show(at));
    svg.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
      if (event.key in to) {
        show(to[event.key]);
        event.preventDefault();
      } else if (event.key === "Escape") hide();
    });
  }
}
