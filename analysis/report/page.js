"use strict";
// Draws the curves when they come into view, switches groups on and off, and keeps the reader's place when the page loads again.
(() => {
  const sections = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const key = "report " + location.pathname;
  const kept = recall();
  const off = sections.map((section, place) => new Set(
    kept.off && kept.off[place] || section.groups.flatMap((group, index) => group.hidden ? [index] : [])));
  const drawn = new Set();

  function recall() {
    try { return JSON.parse(sessionStorage.getItem(key)) || {}; } catch { return {}; }
  }
  function remember() {
    const open = [...document.querySelectorAll("details[id]")].map((one) => [one.id, one.open]);
    try {
      sessionStorage.setItem(key, JSON.stringify({ y: scrollY, open, off: off.map((one) => [...one]) }));
    } catch { /* a browser may refuse to store anything for a file */ }
  }

  // A colour that stands out from a dark page too: as much white is added as it needs.
  function tint(colour) {
    if (!dark.matches) return colour;
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    for (let white = 0; white < 1; white += 0.05) {
      const mixed = parts.map((part) => Math.round(part + (255 - part) * white));
      if (0.2126 * mixed[0] + 0.7152 * mixed[1] + 0.0722 * mixed[2] > 120) return `rgb(${mixed.join(",")})`;
    }
    return colour;
  }

  function traces(section, chart, place) {
    const strong = new Set(chart.lines.filter((line) => line.kind === "strong").map((line) => line.group));
    const faint = (line) => line.kind === "run" && strong.has(line.group);
    const lines = [...chart.lines].sort((a, b) => faint(b) - faint(a)).map((line) => {
      const group = section.groups[line.group];
      const same = line.name === group.name;
      return {
        type: "scatter", mode: line.kind === "evaluated" && line.x.length <= 60 ? "lines+markers" : "lines",
        x: line.x, y: line.y, name: same ? group.name : `${group.name}: ${line.name}`,
        opacity: faint(line) ? 0.4 : 1, visible: !off[place].has(line.group), group: line.group,
        line: { color: tint(group.colour), width: faint(line) ? 0.8 : 1.8, dash: faint(line) ? "solid" : group.dash || "solid" },
        marker: { size: 4 }, hovertemplate: "%{fullData.name}<br>step %{x:,}: %{y:.5g}<extra></extra>",
      };
    });
    const marks = chart.marks.map((mark) => ({
      type: "scatter", mode: "markers", x: [mark.x], y: [mark.y], text: [mark.text], name: mark.text,
      visible: !off[place].has(mark.group), group: mark.group, hovertemplate: "%{text}<extra></extra>",
      marker: { symbol: mark.broken ? "x" : "triangle-down-open", size: 10, color: tint(section.groups[mark.group].colour),
        line: { width: 2 } },
    }));
    return [...lines, ...marks];
  }

  // What lies above the axis is marked at its edge.
  function beyond(section, chart, place) {
    const ends = chart.lines.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
    const middle = (Math.min(...ends) + Math.max(...ends)) / 2;
    return chart.marks.filter((mark) => mark.beyond && !off[place].has(mark.group)).map((mark) => {
      const right = mark.x > middle, sign = mark.broken ? "✕" : "▲";
      return {
        x: mark.x, y: 1, yref: "paper", yanchor: "top", xanchor: right ? "right" : "left", xshift: right ? 6 : -6, showarrow: false,
        text: !mark.label ? sign : right ? `${mark.label} ${sign}` : `${sign} ${mark.label}`, hovertext: mark.text,
        font: { size: 11, color: tint(section.groups[mark.group].colour) },
      };
    });
  }

  function layout(section, chart, place) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), automargin: true };
    return {
      showlegend: false, hovermode: "closest", margin: { l: 54, r: 10, t: 30, b: 40 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--faint"), activecolor: colour("--text") }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--text"), size: 12, family: "system-ui, sans-serif" },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      hoverlabel: { bgcolor: colour("--panel"), font: { color: colour("--text") }, align: "left" },
      xaxis: { ...axis, title: { text: "step" }, tickformat: ",d" },
      yaxis: { ...axis, title: { text: chart.unit }, type: chart.log ? "log" : "linear",
        ...(chart.limits ? { range: chart.limits } : {}) },
      shapes: chart.bands.map(([first, last]) => ({ type: "rect", yref: "paper", x0: first - 0.5, x1: last + 0.5, y0: 0, y1: 1,
        line: { width: 0 }, fillcolor: colour("--faint"), opacity: 0.25, layer: "below" })),
      annotations: beyond(section, chart, place),
    };
  }

  function draw(plot) {
    const place = Number(plot.dataset.section);
    const section = sections[place];
    const chart = section.charts[Number(plot.dataset.chart)];
    Plotly.react(plot, traces(section, chart, place), layout(section, chart, place),
      { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
    drawn.add(plot);
  }

  function press(button, place, index) {
    const shown = !off[place].has(index);
    button.setAttribute("aria-pressed", String(shown));
    return shown;
  }
  function legend(list) {
    const place = Number(list.dataset.section);
    list.querySelectorAll("button").forEach((button, index) => {
      const line = button.querySelector("line");
      const paint = () => line.setAttribute("stroke", tint(sections[place].groups[index].colour));
      paint();
      dark.addEventListener("change", paint);
      press(button, place, index);
      button.addEventListener("click", () => {
        off[place].has(index) ? off[place].delete(index) : off[place].add(index);
        document.querySelectorAll(`.legend[data-section="${place}"]`).forEach((other) =>
          press(other.querySelectorAll("button")[index], place, index));
        [...drawn].filter((plot) => Number(plot.dataset.section) === place).forEach(draw);
      });
    });
  }

  document.documentElement.classList.add("js");
  document.querySelectorAll(".legend").forEach(legend);
  (kept.open || []).forEach(([id, open]) => {
    const one = document.getElementById(id);
    if (one) one.open = open;
  });
  const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
  }), { rootMargin: "300px" });
  document.querySelectorAll(".plot").forEach((plot) => watch.observe(plot));
  dark.addEventListener("change", () => drawn.forEach(draw));
  addEventListener("pagehide", remember);
  if (kept.y && document.querySelector('meta[http-equiv="refresh"]')) scrollTo(0, kept.y);
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.printed:not([open])")];
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
})();
