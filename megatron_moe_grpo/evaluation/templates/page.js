// Draws the charts when they come into view, in the reader's colours, and filters the gallery.
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("page-charts").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  // A finger that scrolls must not zoom a chart.
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const NUM_COLOURS = 6;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  function styledTrace(trace) {
    const role = trace.meta.role;
    const style = structuredClone(trace);
    if (role === "one_sided" || role === "two_sided") {
      style.colorscale = role === "one_sided"
        ? [[0, colour("heat-low")], [1, colour("heat-high")]]
        : [[0, colour("side-text")], [0.5, colour("side-even")], [1, colour("side-vision")]];
      style.colorbar = { thickness: 10, outlinewidth: 0, tickfont: { color: colour("soft"), size: 11 } };
      style.xgap = style.ygap = 1;
      return style;
    }
    const line = role === "control" ? colour("control") : colour("series-" + (role % NUM_COLOURS));
    const isThin = trace.meta.thin === true;
    style.line = { color: line, width: isThin ? 1 : 2, dash: role === "control" ? "dash" : "solid" };
    style.marker = { color: line, size: 5 };
    style.opacity = isThin ? 0.45 : 1;
    return style;
  }

  function styledLayout(spec) {
    const layout = structuredClone(spec.layout);
    const isMap = spec.data[0].type === "heatmap";
    const axis = { ticks: "", gridcolor: colour("line"), zeroline: false, linecolor: colour("line"), automargin: true,
                   fixedrange: isTouch, tickfont: { color: colour("soft"), size: 12 } };
    for (const name of ["xaxis", "yaxis"]) {
      layout[name] = { ...axis, ...layout[name] };
      layout[name].title.font = { size: 12, color: colour("soft") };
      layout[name].title.standoff = 8;
    }
    if (layout.title) {
      Object.assign(layout.title, { font: { size: 13, color: colour("ink") }, x: 0, xanchor: "left", xref: "paper", y: 0.98, yanchor: "top" });
    }
    for (const shape of layout.shapes ?? []) {
      shape.line = { color: colour("mark"), width: 2 };
    }
    return { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
             font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 12 },
             margin: { l: 8, r: 8, t: layout.title ? 34 : 10, b: 8 }, dragmode: isTouch ? false : "zoom",
             hovermode: isMap ? "closest" : "x unified", autosize: true,
             hoverlabel: { bgcolor: colour("wash"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12 } },
             legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } } };
  }

  function draw(plot) {
    const spec = specs[Number(plot.dataset.chart)];
    plot.dataset.state = "drawn";
    return window.Plotly.react(plot, spec.data.map(styledTrace), styledLayout(spec),
                               { responsive: true, displayModeBar: false, doubleClick: "reset" });
  }

  async function loadPlotly() {
    const packed = Uint8Array.from(atob(document.getElementById("page-plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function drawInView() {
    if (!("DecompressionStream" in window)) {
      for (const plot of plots) { plot.textContent = "This browser is too old for the charts; the numbers stand below."; }
      return;
    }
    await loadPlotly();
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((each) => each.isIntersecting)) {
        watch.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "400px" });
    plots.forEach((plot) => watch.observe(plot));
    const drawn = () => plots.filter((plot) => plot.dataset.state === "drawn");
    isDark.addEventListener("change", () => drawn().forEach(draw));
    addEventListener("beforeprint", () => plots.forEach(draw));
  }

  for (const gallery of document.querySelectorAll(".gallery")) {
    const examples = [...gallery.querySelectorAll(".example")];
    const [task, outcome] = gallery.querySelectorAll("select");
    const shown = gallery.querySelector("output");
    const apply = () => {
      for (const example of examples) {
        example.hidden = (task.value !== "" && example.dataset.task !== task.value)
          || (outcome.value !== "" && example.dataset.outcome !== outcome.value);
      }
      const count = examples.filter((example) => !example.hidden).length;
      shown.textContent = count + " of " + examples.length + " shown";
    };
    task.addEventListener("change", apply);
    outcome.addEventListener("change", apply);
    apply();
  }

  if (plots.length > 0) { drawInView(); }
})();
