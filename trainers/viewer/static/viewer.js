"use strict";
(() => {
  const at = (id) => document.getElementById(id);

  const filter = at("filter");
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const row of document.querySelectorAll("nav tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
  if (!at("data")) return;

  const data = JSON.parse(at("data").textContent);
  const { columns, rows, cells } = data.raster;
  const patchAt = new Map(cells.map((cell, patch) => [cell, patch]));
  const number = (value) => (value === null ? "–" : Number(value.toPrecision(3)).toString());

  const chosen = () => data.layers[Number(at("layer").value)];
  const threshold = (layer) => layer.low + (Number(at("threshold").value) / 1000) * (layer.high - layer.low);

  function find(name) {
    for (const document of Bokeh.documents) {
      const found = document.get_model_by_name(name);
      if (found) return found;
    }
    return null;
  }

  function paint() {
    const layer = chosen();
    const from = Number(at("threshold").value) === 0 ? -Infinity : threshold(layer);
    const source = find("values");
    const image = source.data.image[0];
    image.fill(NaN);
    cells.forEach((cell, patch) => {
      const value = layer.values[patch];
      const row = rows - 1 - Math.floor(cell / columns);  // Bokeh's pictures begin at the bottom
      if (value !== null && value >= from) image[row * columns + (cell % columns)] = value;
    });
    const colours = find("colours");
    colours.setv({ palette: layer.palette, low: layer.low, high: layer.high });
    source.change.emit();
    at("meaning").textContent = layer.meaning;
    at("threshold-value").textContent = from === -Infinity ? "all" : number(from);
    at("scale-low").textContent = number(layer.low);
    at("scale-high").textContent = "≥ " + number(layer.high);
    const canvas = at("scale-colours").getContext("2d");
    layer.palette.forEach((colour, k) => {
      canvas.fillStyle = colour;
      canvas.fillRect(k, 0, 1, 1);
    });
  }


  function fade() {
    const opacity = Number(at("opacity").value);
    find("heatmap").glyph.global_alpha = { value: opacity };
    at("opacity-value").textContent = Math.round(100 * opacity) + " %";
  }

  function close() {
    at("patch").hidden = true;
  }

  function tapped(x, y) {
    const px = x / data.um_per_px, py = -y / data.um_per_px;
    const column = Math.floor((px - data.origin[0]) / data.step);
    const row = Math.floor((py - data.origin[1]) / data.step);
    const inside = column >= 0 && row >= 0 && column < columns && row < rows;
    const patch = inside ? patchAt.get(row * columns + column) : undefined;
    if (patch === undefined) return close();
    const [left, top] = data.coords[patch];
    at("patch-title").textContent = `Patch at (${left}, ${top}) px of level 0`;
    at("patch-values").replaceChildren(...data.layers.map((layer) => {
      const line = document.createElement("tr");
      const name = document.createElement("th"), value = document.createElement("td");
      name.scope = "row";
      name.textContent = layer.name;
      value.textContent = number(layer.values[patch]);
      line.append(name, value);
      return line;
    }));
    const picture = at("patch-picture");
    picture.src = data.patch_url.replace("PATCH", String(patch));
    picture.alt = `H&E patch at (${left}, ${top})`;
    at("patch").hidden = false;
  }

  function listen() {
    find("he").on_event("tap", (event) => tapped(event.x, event.y));
  }

  function whole() {
    for (const name of ["he", "ihc"]) {
      const plot = find(name);
      if (plot) plot.reset.emit();
    }
  }

  window.her2cache = { ready: false };
  at("layer").addEventListener("change", () => { at("threshold").value = 0; paint(); });
  at("threshold").addEventListener("input", paint);
  at("opacity").addEventListener("input", fade);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("whole").addEventListener("click", whole);
  at("patch-close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });

  (function begin() {
    if (!window.Bokeh || !find("values")) return setTimeout(begin, 30);
    listen();
    paint();
    window.her2cache.ready = true;
  })();
})();
