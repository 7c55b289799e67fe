(function () {
  "use strict";
  var walks = JSON.parse(document.getElementById("walks").textContent);
  var root = document.getElementById("walker");
  var form = root.querySelector("form"), grid = root.querySelector(".grid"), out = root.querySelector("output");
  var SVG = "http://www.w3.org/2000/svg";
  var fields = [
    ["regime", "Regime", String],
    ["guest", "Guest levels", function (n) { return n === 0 ? "none" : String(n); }],
    ["host", "Nested levels", function (n) { return n === 0 ? "none" : String(n); }],
    ["guest_page", "Guest page", String],
    ["host_page", "Host page", String]
  ];
  var chosen = walks[0], step = 0;

  // Of the walks that keep what was just chosen, the one that keeps most of the rest.
  function choose(field, value) {
    var best = null, most = -1;
    walks.forEach(function (walk) {
      if (String(walk[field]) !== value) { return; }
      var kept = fields.filter(function (f) { return walk[f[0]] === chosen[f[0]]; }).length;
      if (kept > most) { best = walk; most = kept; }
    });
    if (best) { chosen = best; step = best.steps.length; draw(); form.elements[field].focus(); }
  }

  function selects() {
    form.textContent = "";
    fields.forEach(function (field) {
      var label = document.createElement("label"), select = document.createElement("select"), seen = [];
      label.append(field[1] + " ");
      walks.forEach(function (walk) {
        if (seen.indexOf(walk[field[0]]) >= 0) { return; }
        seen.push(walk[field[0]]);
        var option = document.createElement("option");
        option.value = String(walk[field[0]]);
        option.textContent = field[2](walk[field[0]]);
        option.selected = walk[field[0]] === chosen[field[0]];
        select.append(option);
      });
      select.name = field[0];
      select.addEventListener("change", function () { choose(field[0], select.value); });
      label.append(select);
      form.append(label);
    });
  }

  function make(parent, name, attributes, words) {
    var node = document.createElementNS(SVG, name);
    Object.keys(attributes).forEach(function (key) { node.setAttribute(key, attributes[key]); });
    if (words !== undefined) { node.textContent = words; }
    parent.append(node);
    return node;
  }

  function draw() {
    selects();
    var columns = [], rows = [], X = 92, Y = 46, DX = 92, DY = 52;
    function bare(name) { return name.replace("guest ", ""); }
    chosen.steps.forEach(function (s) {
      if (columns.indexOf(bare(s[1])) < 0) { columns.push(bare(s[1])); }
      if (s[0] === "nested" && rows.indexOf(s[2]) < 0) { rows.push(s[2]); }
    });
    if (columns.indexOf("data") < 0) { columns.push("data"); }
    rows.sort(function (a, b) { return b - a; });
    function place(s) {
      var row = s[0] === "nested" ? rows.indexOf(s[2]) : rows.length;
      return [X + DX * columns.indexOf(bare(s[1])), Y + DY * row];
    }
    var width = X + DX * columns.length - 30, height = Y + DY * (rows.length + 1) - 16;
    var svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 " + width + " " + height);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", chosen.steps.length + " references, " + step + " of them made");
    columns.forEach(function (name, i) { make(svg, "text", { x: X + DX * i, y: 16, "class": "name" }, name); });
    rows.forEach(function (level, i) { make(svg, "text", { x: 4, y: Y + DY * i + 4 }, "nested L" + level); });
    make(svg, "text", { x: 4, y: Y + DY * rows.length + 4 }, "the entry");
    var last = null;
    chosen.steps.forEach(function (s, i) {
      var at = place(s), state = i < step ? (i === step - 1 ? " now" : "") : " later";
      if (last && i < step) { make(svg, "line", { x1: last[0], y1: last[1], x2: at[0], y2: at[1] }); }
      last = at;
      var group = make(svg, "g", { "class": "cell " + s[0] + state });
      make(group, "circle", { cx: at[0], cy: at[1], r: 16 });
      make(group, "text", { x: at[0], y: at[1] + 4, "class": "name" }, String(i + 1));
      make(group, "title", {}, s[6]);
    });
    var page = [X + DX * (columns.length - 1), Y + DY * rows.length];
    make(svg, "rect", { x: page[0] - 22, y: page[1] - 14, width: 44, height: 28, rx: 4 });
    make(svg, "text", { x: page[0], y: page[1] + 4, "class": "name" }, "page");
    // Lines lie under the cells.
    svg.querySelectorAll("line").forEach(function (line) { svg.prepend(line); });
    grid.textContent = "";
    grid.append(svg);
    // On a narrow page the reference made last is brought into sight.
    if (step > 0) { grid.scrollLeft = place(chosen.steps[step - 1])[0] - grid.clientWidth / 2; }
    var s = chosen.steps[step - 1];
    out.textContent = step === 0 ? chosen.steps.length + " references" :
      step + " of " + chosen.steps.length + ": " + s[0] + " level " + s[2] + ", entry " + s[3] + " at " + s[4] + " = " + s[5] + ", " + s[6];
  }

  root.querySelector(".steps").addEventListener("click", function (event) {
    var all = chosen.steps.length;
    switch (event.target.dataset.step) {
      case "first": step = 1; break;
      case "back": step = Math.max(1, step - 1); break;
      case "next": step = Math.min(all, step + 1); break;
      case "last": step = all; break;
      default: return;
    }
    draw();
  });
  // Left and right, except where they choose from a list.
  root.addEventListener("keydown", function (event) {
    if (event.target.tagName === "SELECT") { return; }
    var by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (by === 0) { return; }
    event.preventDefault();
    step = Math.min(chosen.steps.length, Math.max(1, step + by));
    draw();
  });
  root.hidden = false;
  step = chosen.steps.length;
  draw();
})();
