"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;

  // -- light and dark

  const button = document.getElementById("theme");
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

  function remembered(theme) {
    try { // a page opened as a file may have no storage
      if (theme) localStorage.setItem("her2cache-theme", theme);
      return localStorage.getItem("her2cache-theme");
    } catch { return null; }
  }

  function showTheme() {
    button.textContent = isDark() ? "Light page" : "Dark page";
    button.setAttribute("aria-pressed", String(isDark()));
    for (const chart of shown) restyle(chart);
  }

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);

  // -- tables and panels that controls choose from

  for (const group of document.querySelectorAll("[data-choose]")) {
    const selects = [...group.querySelectorAll("select[data-by]")];
    const search = group.querySelector("input[data-search]");
    const count = group.querySelector("output");
    const items = [...group.querySelectorAll("[data-item]")];
    const choose = () => {
      const text = search ? search.value.trim().toLowerCase() : "";
      for (const item of items) {
        const fits = selects.every(({ value, dataset }) => !value || item.getAttribute(`data-f-${dataset.by}`) === value);
        item.hidden = !fits || !(!text || item.textContent.toLowerCase().includes(text));
      }
      if (count) count.textContent = `${items.filter((item) => !item.hidden).length} of ${items.length} rows`;
    };
    for (const control of [...selects, search]) control?.addEventListener("input", choose);
    choose();
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.append(...head.childNodes);
      head.append(sorter);
      sorter.addEventListener("click", () => {
        const rises = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", rises ? "ascending" : "descending");
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((a, b) => (rises ? 1 : -1) * compare(a.cells[column], b.cells[column])));
      });
    });
  }

  function compare(a, b) {
    const [x, y] = [a, b].map((cell) => cell.dataset.order ?? cell.textContent);
    const [m, n] = [Number(x), Number(y)];
    return Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y, "en", { numeric: true }) : m - n;
  }

  const wide = new ResizeObserver((entries) => {
    for (const { target } of entries) { // what scrolls must be within reach of the keyboard
      if (target.scrollWidth > target.clientWidth + 1) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const scroller of document.querySelectorAll(".sheet, .picture")) wide.observe(scroller);

  // -- maps at full size

  for (const widen of document.querySelectorAll("[data-widen]")) {
    widen.addEventListener("click", () => {
      const whole = widen.closest(".map").classList.toggle("wide");
      widen.setAttribute("aria-pressed", String(whole));
    });
  }

  // -- charts

  const shown = [];

  function restyle({ model }) {
    const style = getComputedStyle(root);
    const [ink, rule] = ["--chart", "--chart-rule"].map((name) => style.getPropertyValue(name).trim());
    for (const part of model.references()) {
      if (part.type.endsWith("Axis")) {
        part.setv({ axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: rule,
          major_tick_line_color: rule, minor_tick_line_color: rule });
      } else if (part.type === "Grid") {
        part.setv({ grid_line_color: rule });
      }
    }
  }

  function swatch({ line_color, line_dash }) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const line = document.createElementNS(space, "line");
    for (const [name, value] of [["width", 34], ["height", 10], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
    for (const [name, value] of [["x1", 1], ["x2", 33], ["y1", 5], ["y2", 5], ["stroke-width", 2.5], ["stroke", line_color],
      ["stroke-dasharray", line_dash.join(" ")]]) line.setAttribute(name, value);
    svg.append(line);
    return svg;
  }

  function showKey(name, entries) {
    document.getElementById(`key-${name}`).replaceChildren(...entries.map(([style, text]) => {
      const item = document.createElement("li");
      item.append(swatch(style), text);
      return item;
    }));
  }

  const lineStyle = (k) => data.lines[k % data.lines.length];
  const renderers = (chart) => [...chart.model.references()].filter((part) => part.type === "GlyphRenderer" && part.tags.length);
  const choices = (name) => [...document.querySelector(`[data-chart="${name}"]`).querySelectorAll("select, input")];

  const switches = {
    roc(chart) {
      const [embedder, kind] = choices("roc");
      let last = embedder;
      const show = () => {
        if (!embedder.value && !kind.value) { // every line at once cannot be read: the other choice gives way
          (last === embedder ? kind : embedder).value = "0";
        }
        const one = embedder.value && kind.value;
        const byClass = embedder.value !== "";
        for (const part of renderers(chart)) {
          const [what, e, c] = part.tags;
          if (e < 0) continue;
          const fits = (!embedder.value || e === Number(embedder.value)) && (!kind.value || c === Number(kind.value));
          part.visible = fits && (what === "mean" || Boolean(one));
          if (what === "mean") part.glyph.setv(lineStyle(byClass ? c : e));
        }
        const entries = [];
        chart.embedders.forEach((name, e) => chart.classes.forEach((label, c) => {
          if ((embedder.value && e !== Number(embedder.value)) || (kind.value && c !== Number(kind.value))) return;
          const area = chart.labels[e][c];
          entries.push([lineStyle(byClass ? c : e), `${byClass ? label : name}: ${area ? `AUC ${area}` : "undefined"}`]);
        }));
        showKey("roc", entries);
      };
      for (const control of [embedder, kind]) control.addEventListener("input", () => { last = control; show(); });
      show();
    },

    learning(chart) {
      const [embedder, others] = choices("learning");
      const show = (zoom) => {
        for (const part of renderers(chart)) {
          const [what, e] = part.tags;
          part.visible = e === Number(embedder.value) && (what !== "other" || others.checked);
        }
        const frame = chart.frames[Number(embedder.value)];
        if (zoom) {
          chart.model.x_range.setv({ start: frame.left, end: frame.right, reset_start: frame.left, reset_end: frame.right });
          chart.model.y_range.setv({ start: frame.bottom, end: frame.top, reset_start: frame.bottom, reset_end: frame.top });
        }
      };
      embedder.addEventListener("input", () => show(true));
      others.addEventListener("input", () => show(false));
      show(true);
      const [train, validation] = [2, 1].map(lineStyle);
      showKey("learning", [
        [{ ...validation, line_dash: [] }, "validation, selected configuration"],
        [{ ...train, line_dash: [6, 3] }, "training, the same"],
        [{ line_color: "#8a8f98", line_dash: [] }, "validation, other configurations"],
      ]);
    },

    bags(chart) {
      showKey("bags", chart.embedders.map((name, e) => [lineStyle(e), name]));
    },
  };

  async function showCharts() {
    for (const [name, chart] of Object.entries(data.charts)) {
      const doc = chart.document;
      const id = doc.roots[0].id;
      const views = await Bokeh.embed.embed_item({ doc, root_id: id, target_id: `chart-${name}` });
      chart.model = views.get_by_id(id).model;
      shown.push(chart);
      restyle(chart);
      switches[name](chart);
    }
    root.dataset.charts = "shown";
  }

  // -- print: everything open

  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
  });
  window.addEventListener("afterprint", () => { for (const each of closed) each.open = false; });

  const before = remembered(null);
  if (before) root.dataset.theme = before;
  showTheme();
  if (window.Bokeh) {
    showCharts().catch((error) => {
      root.dataset.charts = "failed"; // the still pictures take their places
      throw error;
    });
  }
})();
