// Figures: legend entries are switches; the pointer, a finger or the arrow keys show values.
"use strict";
(() => {
  const MANY = 10; // entries of a legend: more are also switched together
  const SVG = "http://www.w3.org/2000/svg";

  for (const figure of document.querySelectorAll("figure.figure")) {
    const entries = [...figure.querySelectorAll(".legend li")];
    for (const entry of entries) addSwitch(figure, entry);
    if (entries.length > MANY) addAll(figure, entries);
    for (const plot of figure.querySelectorAll("svg.plot")) addValues(plot);
  }

  function addSwitch(figure, entry) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(...entry.childNodes);
    entry.append(button);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const group of figure.querySelectorAll("g.series")) {
        if (group.dataset.series === entry.dataset.series) group.classList.toggle("off", !shown);
      }
    });
  }

  function addAll(figure, entries) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "all";
    button.textContent = "hide all";
    item.append(button);
    entries[0].before(item);
    button.addEventListener("click", () => {
      const show = button.textContent === "show all";
      for (const one of entries.map((entry) => entry.querySelector("button"))) {
        if ((one.getAttribute("aria-pressed") === "true") !== show) one.click();
      }
      button.textContent = show ? "hide all" : "show all";
    });
  }

  function addValues(plot) {
    const [top, bottom] = plot.dataset.box.split(" ").map(Number);
    const groups = [...plot.querySelectorAll("g.series")].map((group) => ({
      group,
      name: group.dataset.series,
      shape: group.dataset.shape,
      level: group.dataset.level,
      faint: group.classList.contains("faint"),
      points: JSON.parse(group.dataset.points || "[]"),
    }));
    const lines = groups.filter((g) => g.shape === "line" || g.shape === "step").filter((g) => !g.faint);
    const tip = document.createElement("div");
    tip.className = "tip off";
    tip.setAttribute("role", "status");
    plot.closest(".panel").append(tip);
    const marks = document.createElementNS(SVG, "g");
    plot.append(marks);
    let stop = null; // where the keys are

    const visible = (list) => list.filter((g) => !g.group.classList.contains("off"));

    // The places that the arrow keys visit, from left to right: of lines each x once, of clouds each point.
    function stops() {
      if (lines.length) return [...new Set(visible(lines).flatMap((g) => g.points.map((p) => p[0])))].sort((a, b) => a - b);
      return visible(groups).flatMap((g) => g.points.map((p) => ({ g, p }))).sort((a, b) => a.p[0] - b.p[0]);
    }

    function nearest(x, y) {
      const away = lines.length ? (at) => Math.abs(at - x) : ({ p }) => Math.hypot(p[0] - x, p[1] - y);
      const found = stops();
      let best = -1;
      found.forEach((one, i) => { if (best < 0 || away(one) < away(found[best])) best = i; });
      return best;
    }

    // ``pointer``: where it is; of lines, single points near to it are shown, too.
    function show(number, pointer) {
      const found = stops();
      if (number < 0 || number >= found.length) return hide();
      stop = number;
      const at = found[number];
      const within = (one, other, most) => Math.hypot(one[0] - other[0], one[1] - other[1]) <= most;
      const dots = visible(groups).filter((g) => !lines.includes(g)).flatMap((g) => g.points.map((p) => ({ g, p })));
      const hits = lines.length
        ? visible(lines).map((g) => ({ g, p: g.points.find((p) => Math.abs(p[0] - at) < 0.06) })).filter((hit) => hit.p)
            .concat(pointer ? dots.filter(({ p }) => within(p, pointer, 8)).slice(0, 6) : [])
        : dots.filter(({ p }) => within(p, at.p, 2)).slice(0, 6);
      const levels = visible(groups).filter((g) => g.level !== undefined);
      draw(hits, hits[0].p[0]);
      write(hits, levels);
      place(hits);
    }

    function hide() {
      stop = null;
      tip.classList.add("off");
      marks.replaceChildren();
    }

    function draw(hits, x) {
      const cross = document.createElementNS(SVG, "line");
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", top], ["y2", bottom], ["class", "cross"]]) cross.setAttribute(name, value);
      const rings = hits.map(({ p }) => {
        const ring = document.createElementNS(SVG, "circle");
        for (const [name, value] of [["cx", p[0]], ["cy", p[1]], ["r", 5], ["class", "ring"]]) ring.setAttribute(name, value);
        return ring;
      });
      marks.replaceChildren(...(lines.length ? [cross] : []), ...rings);
    }

    function write(hits, levels) {
      const head = document.createElement("p");
      const label = hits.length === 1 && hits[0].p[4] ? ` (${hits[0].p[4]})` : "";
      head.textContent = `${plot.dataset.x}: ${hits[0].p[2]}${label}`;
      const list = document.createElement("ul");
      const rows = [...hits.map(({ g, p }) => [g, p[3], p[4]]), ...levels.map((g) => [g, g.level])];
      for (const [g, value, more] of rows) {
        const item = document.createElement("li");
        const name = document.createElement("span");
        name.className = [...g.group.classList].filter((c) => c !== "faint").join(" ");
        name.textContent = hits.length > 1 && more ? `${g.name}, ${more}` : g.name;
        const number = document.createElement("b");
        number.textContent = value;
        item.append(name, number);
        list.append(item);
      }
      tip.replaceChildren(head, list);
      tip.classList.remove("off");
    }

    // Beside the points where the figure has room, to the right or to the left; where it has none (a phone), below.
    function place(hits) {
      const box = plot.getBoundingClientRect();
      const panel = tip.parentElement.getBoundingClientRect();
      const figure = plot.closest("figure").getBoundingClientRect();
      const scale = box.width / plot.viewBox.baseVal.width;
      const x = box.left + hits[0].p[0] * scale;
      const width = tip.offsetWidth;
      const right = x + 12 + width <= figure.right;
      const beside = right || x - 12 - width >= figure.left;
      const at = beside ? (right ? x + 12 : x - 12 - width) : Math.max(figure.left, figure.right - width);
      const down = lines.length ? top : Math.max(0, hits[0].p[1] - 40);
      tip.style.left = `${at - panel.left}px`;
      tip.style.top = `${(beside ? box.top + down * scale : box.bottom) - panel.top}px`;
    }

    function follow(event) {
      const box = plot.getBoundingClientRect();
      const scale = plot.viewBox.baseVal.width / box.width;
      const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      show(nearest(...at), at);
    }

    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); }); // a finger leaves when it lifts
    document.addEventListener("pointerdown", (event) => { if (!plot.contains(event.target)) hide(); });
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const last = stops().length - 1;
      const from = stop === null ? -1 : stop;
      const to = { ArrowRight: Math.min(from + 1, last), ArrowLeft: Math.max(from - 1, 0), Home: 0, End: last }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }
})();
