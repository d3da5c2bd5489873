"use strict";
// Reads values off the charts. Everything hangs on the document, so that it survives a newer body.
(() => {
  const read = new WeakMap();
  const chart = (target) => target instanceof Element && target.closest("figure[data-hover] > svg");

  function state(svg) {
    if (!read.has(svg)) {
      const figure = svg.parentElement;
      const values = [...figure.querySelectorAll("[data-series]")];
      const at = document.createElement("span");
      at.className = "at";
      read.set(svg, { hover: JSON.parse(figure.dataset.hover), values, usual: values.map((v) => v.textContent), at, drawn: [] });
    }
    return read.get(svg);
  }

  function nearest(points, x) {
    let best;
    for (const point of points) {
      if (!best || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
    }
    return best;
  }

  function draw(svg, name, attributes) {
    const element = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    svg.append(element);
    return element;
  }

  function clear(svg) {
    const { values, usual, at, drawn } = state(svg);
    for (const element of drawn.splice(0)) element.remove();
    values.forEach((value, n) => (value.textContent = usual[n]));
    at.remove();
  }

  function show(svg, clientX) {
    clear(svg);
    const { hover, values, at, drawn } = state(svg);
    const box = svg.getBoundingClientRect();
    const x = ((clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const found = hover.series.map((points) => nearest(points, x));
    const middle = nearest(found.filter(Boolean), x);
    if (!middle || x < hover.left - 12 || x > hover.right + 12) return;
    drawn.push(draw(svg, "path", { class: "hair", d: `M${middle[0]} ${hover.top}V${hover.bottom}` }));
    for (const value of values) {
      const point = found[value.dataset.series];
      const near = point && Math.abs(point[0] - middle[0]) < 12;
      value.textContent = near ? point[3] : "–";
      if (near) drawn.push(draw(svg, "circle", { class: "dot", cx: point[0], cy: point[1], r: 3.4 }));
    }
    at.textContent = `at ${hover.name} ${middle[2]}`;
    svg.parentElement.querySelector(".chart-head").append(at);
  }

  let last;
  const move = (event) => {
    const svg = chart(event.target);
    if (last && last !== svg) clear(last);
    last = svg || undefined;
    if (svg) show(svg, event.clientX);
  };
  document.addEventListener("pointermove", move);
  document.addEventListener("pointerdown", move);
  document.documentElement.addEventListener("pointerleave", () => {
    if (last) clear(last);
    last = undefined;
  });
})();

// Looks for a newer version of a page whose run goes on.
(() => {
  const open = () => [...document.querySelectorAll("details")].map((details) => details.open);

  async function refresh() {
    if (location.protocol === "file:") return location.reload();
    try {
      const response = await fetch(location.href, { cache: "no-store" });
      if (response.ok) {
        const newer = new DOMParser().parseFromString(await response.text(), "text/html");
        const [folds, y] = [open(), scrollY];
        document.title = newer.title;
        document.body.replaceWith(newer.body);
        document.querySelectorAll("details").forEach((details, n) => (details.open = folds[n] ?? false));
        scrollTo({ top: y, behavior: "instant" });
      }
    } catch {
      // The run's server may be gone or busy; the page stays as it is.
    }
    wait();
  }

  function wait() {
    const seconds = Number(document.body.dataset.refresh);
    if (seconds > 0) setTimeout(refresh, 1000 * seconds);
  }

  wait();
})();
