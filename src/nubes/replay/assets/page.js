// Highlights one policy in every chart, and reads the latency distributions off under the pointer.
(() => {
  const all = (query) => [...document.querySelectorAll(query)];
  let held = null;

  const light = (id) => {
    document.body.classList.toggle("lit", id !== null);
    all("[data-series]").forEach((e) => e.classList.toggle("on", e.dataset.series === id));
  };

  const hover = (element, id) => {
    element.onmouseenter = element.onfocus = () => light(id);
    element.onmouseleave = element.onblur = () => light(held);
  };

  all(".point").forEach((point) => hover(point, point.dataset.series));
  all(".legend button").forEach((button) => {
    const id = button.dataset.series;
    hover(button, id);
    button.onclick = () => {
      held = held === id ? null : id;
      light(held);
      all(".legend button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.series === held)));
    };
  });

  const time = (s) =>
    s < 1e-3 ? `${(s * 1e6).toPrecision(3)} us`
    : s < 1 ? `${(s * 1e3).toPrecision(3)} ms`
    : s < 120 ? `${s.toPrecision(3)} s`
    : s < 7200 ? `${(s / 60).toPrecision(3)} min`
    : `${(s / 3600).toPrecision(3)} h`;

  const line = (name, value) => {
    const row = document.createElement("span");
    for (const text of [name, value]) row.append(Object.assign(document.createElement("span"), { textContent: text }));
    return row;
  };

  all("figure[data-plot]").forEach((figure) => {
    const svg = figure.querySelector("svg");
    const series = JSON.parse(figure.querySelector("script").textContent);
    const [left, right, top, bottom] = figure.dataset.plot.split(" ").map(Number);
    const most = Math.max(...series.flatMap((s) => s.points.map((p) => p[1])));
    const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const read = Object.assign(document.createElement("div"), { className: "read", hidden: true });
    hair.setAttribute("class", "hair");
    hair.setAttribute("x1", left);
    hair.setAttribute("x2", right);
    read.setAttribute("aria-hidden", "true");
    svg.append(hair);
    figure.append(read);

    const leave = () => {
      hair.style.display = "none";
      read.hidden = true;
    };
    leave();
    svg.onpointerleave = leave;
    svg.onpointermove = (event) => {
      const frame = svg.getBoundingClientRect();
      const y = ((event.clientY - frame.top) / frame.height) * svg.viewBox.baseVal.height;
      const nines = ((bottom - y) / (bottom - top)) * most;
      if (nines < 0 || nines > most) return leave();
      hair.style.display = "";
      hair.setAttribute("y1", y);
      hair.setAttribute("y2", y);
      const share = (1 - 10 ** -nines) * 100;
      const title = document.createElement("b");
      title.textContent = `${share.toFixed(share < 99 ? 1 : share < 99.9 ? 2 : 3)} % within`;
      read.replaceChildren(title);
      for (const s of series) {
        const nearest = s.points.reduce((a, p) => (Math.abs(p[1] - nines) < Math.abs(a[1] - nines) ? p : a));
        read.append(line(s.label, time(nearest[0])));
      }
      read.hidden = false;
      const outer = figure.getBoundingClientRect();
      read.style.left = `${Math.min(event.clientX - outer.left + 18, outer.width - read.offsetWidth - 8)}px`;
      read.style.top = `${Math.max(8, event.clientY - outer.top - read.offsetHeight - 14)}px`;
    };
  });
})();
