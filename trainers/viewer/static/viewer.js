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

  function outline(sides) {
    find("chosen").data = sides;
  }

  function close() {
    at("patch").hidden = true;
    outline({ left: [], right: [], top: [], bottom: [] });
  }

  function tapped(x, y) {
    const px = x / data.um_per_px, py = -y / data.um_per_px;
    const column = Math.floor((px - data.origin[0]) / data.step);
    const row = Math.floor((py - data.origin[1]) / data.step);
    const inside = column >= 0 && row >= 0 && column < columns && row < rows;
    const patch = inside ? patchAt.get(row * columns + column) : undefined;
    if (patch === undefined) return close();
    const [left, top] = data.coords[patch];
    const um = (level0) => [level0 * data.um_per_px];
    outline({ left: um(left), right: um(left + data.patch_px), top: um(-top), bottom: um(-top - data.patch_px) });
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

  function set(range, start, end) {
    range.setv({ start, end });
  }

  // A micrometre is as long in y as in x. x leads; both panes share their ranges.
  function keepAspect() {
    const plot = find("he");
    const { x_range: x, y_range: y } = plot;
    const [width, height] = data.size_um;
    const most = 4 * Math.max(width, height), least = 16 * data.um_per_px;
    const span = Math.min(Math.max(x.end - x.start, least), most);
    const high = (span * plot.inner_height) / plot.inner_width;
    if (Math.abs(span - (x.end - x.start)) > 1e-9 * span) {
      const middle = (x.start + x.end) / 2;
      set(x, middle - span / 2, middle + span / 2);
    }
    if (Math.abs(high - (y.end - y.start)) > 1e-6 * high) {
      const middle = (y.start + y.end) / 2;
      set(y, middle - high / 2, middle + high / 2);
    }
  }

  function whole() {
    const plot = find("he");
    const [width, height] = data.size_um;
    const span = Math.max(width, (height * plot.inner_width) / plot.inner_height);
    const high = (span * plot.inner_height) / plot.inner_width;
    set(plot.y_range, -height / 2 - high / 2, -height / 2 + high / 2);
    set(plot.x_range, width / 2 - span / 2, width / 2 + span / 2);
  }

  function listen() {
    const plot = find("he");
    for (const name of ["he", "ihc"]) {
      const view = find(name) && Bokeh.index.find_one(find(name));
      // each pane's tiles would set the ranges that both share, one after the other
      if (view) for (const own of view.renderer_views.values()) if (own._enforce_aspect_ratio) own._enforce_aspect_ratio = () => {};
    }
    plot.on_event("tap", (event) => tapped(event.x, event.y));
    for (const edge of ["start", "end"]) plot.x_range.property(edge).change.connect(keepAspect);
    for (const side of ["inner_width", "inner_height"]) plot.property(side).change.connect(keepAspect);
    whole();
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
