"use strict";
(() => {
  const { specs, configs } = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const [LOG_ERRORS, LOG_WARNINGS] = [1, 2]; // as Vega numbers them
  const hiddenRuns = new Set();
  const views = new Map(); // by the key of a chart
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Theme: the system's, until it is chosen here.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const storage = {
    get: () => { try { return localStorage.getItem("hf_pdyn-theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("hf_pdyn-theme", theme); } catch { /* a file may have none */ } },
  };
  const theme = () => storage.get() ?? chosen ?? (system.matches ? "dark" : "light");
  let chosen = null;

  function applyTheme() {
    root.dataset.theme = theme();
    const button = document.getElementById("theme");
    button.setAttribute("aria-pressed", String(theme() === "dark"));
    drawAgain();
  }

  // Charts are drawn one after the other, from the top; a newer call ends an older one.
  let generation = 0;
  let drawing = Promise.resolve();

  function draw() {
    const mine = ++generation;
    root.dataset.state = "drawing";
    drawing = drawing.then(async () => {
      for (const figure of all("figure.chart:not([hidden])")) {
        if (mine !== generation) return;
        if (!views.has(figure.dataset.key)) await drawOne(figure);
      }
      if (mine === generation) root.dataset.state = "ready";
    });
    return drawing;
  }

  function drawAgain() {
    for (const result of views.values()) result.finalize();
    views.clear();
    draw();
  }

  async function drawOne(figure) {
    const plot = figure.querySelector(".plot");
    try {
      const result = await vegaEmbed(plot, specs[figure.dataset.key], {
        actions: false,
        config: configs[root.dataset.theme],
        renderer: "canvas",
        tooltip: { theme: root.dataset.theme },
      });
      views.set(figure.dataset.key, result);
      await apply(result.view);
    } catch (error) {
      const message = document.createElement("p");
      message.className = "failed";
      message.textContent = `This chart could not be drawn: ${error.message}`;
      plot.replaceChildren(message);
      console.error(error);
    }
    await new Promise((resolve) => setTimeout(resolve)); // the page stays usable meanwhile
  }

  // Runs
  function showRuns() {
    hiddenRuns.clear();
    for (const box of all(".toggles input")) if (!box.checked) hiddenRuns.add(box.dataset.run);
    for (const row of all("tr[data-run]")) row.hidden = hiddenRuns.has(row.dataset.run);
    for (const cell of all("[data-column]")) cell.hidden = hiddenRuns.has(cell.dataset.column);
    for (const { view } of views.values()) apply(view);
  }
  function apply(view) {
    const nothing = hiddenRuns.size > 0 && !all(".toggles input:checked").length;
    view.logLevel(nothing ? LOG_ERRORS : LOG_WARNINGS); // an empty axis is no news then
    return view.signal("hidden", [...hiddenRuns]).runAsync();
  }
  for (const box of all(".toggles input")) box.addEventListener("change", showRuns);
  for (const button of all("[data-all]")) {
    button.addEventListener("click", () => {
      for (const box of all(".toggles input")) box.checked = button.dataset.all === "on";
      showRuns();
    });
  }

  // Heat maps: of one run and one part
  function choose(section) {
    const wanted = Object.fromEntries(all("[data-choose]", section).map((select) => [select.dataset.choose, select.value]));
    const figures = all("figure[data-run]", section);
    for (const figure of figures) {
      figure.hidden = figure.dataset.run !== wanted.run || figure.dataset.part !== wanted.part;
    }
    section.querySelector(".nothing").hidden = figures.some((figure) => !figure.hidden);
  }
  for (const select of all("[data-choose]")) {
    const section = select.closest("section");
    choose(section);
    select.addEventListener("change", () => { choose(section); draw(); });
  }

  // Saving a chart
  for (const button of all("[data-save]")) {
    button.addEventListener("click", async () => {
      const key = button.closest("figure").dataset.key;
      const view = views.get(key)?.view;
      if (!view) return;
      const link = document.createElement("a");
      link.href = await view.toImageURL(button.dataset.save, 2);
      link.download = `${key}.${button.dataset.save}`;
      link.click();
    });
  }

  // Configuration
  const differences = document.getElementById("differences");
  if (differences) {
    const table = document.querySelector("table.configuration");
    const filter = () => table.classList.toggle("only", differences.checked);
    differences.addEventListener("change", filter);
    filter();
  }

  document.getElementById("theme").addEventListener("click", () => {
    chosen = theme() === "dark" ? "light" : "dark";
    storage.set(chosen);
    applyTheme();
  });
  system.addEventListener("change", applyTheme);
  applyTheme();
})();
