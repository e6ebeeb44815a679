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
    forget([...views.keys()]);
    draw();
  }

  function forget(keys) {
    for (const key of keys) {
      views.get(key)?.finalize();
      views.delete(key);
    }
  }

  // Lines: over steps or epochs, smoothed or not
  const reading = { over: document.getElementById("over"), smoothing: document.getElementById("smoothing") };
  for (const select of Object.values(reading)) select?.addEventListener("change", drawLinesAgain);

  function drawLinesAgain() {
    forget([...views.keys()].filter((key) => specs[key].usermeta));
    draw();
  }

  // The spec as its reader wants it; the one of the page stays as it is.
  function wanted(spec) {
    const { over, smooth } = spec.usermeta ?? {};
    const epochs = over && reading.over?.value === "epoch";
    const part = smooth ? Number(reading.smoothing.value) : 0;
    if (!epochs && !part) return spec;
    const own = structuredClone(spec);
    if (epochs) {
      own.transform.push({ filter: "isValid(datum.epoch)" });
      Object.assign(own.encoding.x, { field: "epoch", title: "epoch", axis: { format: ".3~g", tickCount: 5 } });
    }
    if (part) smoothLines(own, part);
    return own;
  }

  function smoothLines(spec, part) {
    const lines = spec.data.values.filter((line) => !line.partial && line.step.length > 2);
    const steps = lines.flatMap((line) => [line.step[0], line.step.at(-1)]);
    const halfLife = part * (Math.max(...steps) - Math.min(...steps));
    for (const line of lines) {
      line.raw = line.value;
      line.value = smoothed(line.step, line.value, halfLife);
    }
    for (const line of spec.data.values) line.raw ??= line.value;
    spec.transform[0].flatten.push("raw");
    const raw = structuredClone(spec.layer[0]);
    raw.mark.opacity = 0.25;
    raw.encoding = { y: { ...spec.encoding.y, field: "raw" } };
    spec.layer.splice(1, 0, raw);
  }

  // An exponential moving average whose weights, from the first value on, sum to one.
  function smoothed(steps, values, halfLife) {
    let [sum, weight] = [0, 0];
    return values.map((value, i) => {
      const kept = i ? 0.5 ** ((steps[i] - steps[i - 1]) / halfLife) : 0;
      [sum, weight] = [sum * kept + value, weight * kept + 1];
      return sum / weight;
    });
  }

  async function drawOne(figure) {
    const plot = figure.querySelector(".plot");
    try {
      const result = await vegaEmbed(plot, wanted(specs[figure.dataset.key]), {
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
    for (const part of all("[data-of]")) part.hidden = hiddenRuns.has(part.dataset.of);
    for (const row of all("tr[data-run]")) row.hidden = hiddenRuns.has(row.dataset.run);
    for (const cell of all("[data-column]")) cell.hidden = hiddenRuns.has(cell.dataset.column);
    for (const { view } of views.values()) apply(view);
    showMore();
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

  // Heat maps: of one part, and of one run or of two side by side
  function choose(section) {
    const chosen = Object.fromEntries(all("[data-choose]", section).map((select) => [select.dataset.choose, select.value]));
    const figures = all("figure[data-run]", section);
    const runs = [...new Set([chosen.run, chosen.beside])].filter(Boolean);
    const titles = [...new Set(figures.map((figure) => figure.querySelector("strong").textContent))];
    for (const figure of figures) {
      const place = runs.indexOf(figure.dataset.run);
      figure.hidden = place < 0 || figure.dataset.part !== chosen.part;
      figure.style.order = titles.indexOf(figure.querySelector("strong").textContent) * 2 + place;
    }
    section.querySelector(".nothing").hidden = figures.some((figure) => !figure.hidden);
    const maps = section.querySelector(".maps");
    if (maps.classList.contains("pairs") === runs.length > 1) return;
    maps.classList.toggle("pairs", runs.length > 1);
    forget(figures.map((figure) => figure.dataset.key)); // they have another width now
  }
  for (const select of all("[data-choose]")) {
    const section = select.closest("section");
    choose(section);
    select.addEventListener("change", () => { choose(section); draw(); });
  }

  // Tables that go on beyond their edge say so, and fade there
  const scrollers = all(".scroll");
  for (const scroller of scrollers) {
    const hint = document.createElement("p");
    hint.className = "more quiet";
    hint.setAttribute("aria-hidden", "true");
    scroller.after(hint);
    scroller.addEventListener("scroll", () => showMoreOf(scroller), { passive: true });
    new ResizeObserver(() => showMoreOf(scroller)).observe(scroller);
  }
  function showMoreOf(scroller) {
    const right = scroller.scrollWidth - scroller.clientWidth - scroller.scrollLeft > 2;
    const below = scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop > 2;
    scroller.classList.toggle("right", right);
    scroller.classList.toggle("below", below);
    const directions = [right && "more columns \u2192", below && "more rows \u2193"].filter(Boolean);
    scroller.nextElementSibling.textContent = directions.join(", ");
  }
  function showMore() { scrollers.forEach(showMoreOf); }

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
    const filter = () => { table.classList.toggle("only", differences.checked); showMore(); };
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
