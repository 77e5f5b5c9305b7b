"use strict";
// Draws the charts, sorts the tables, and browses the examples of a report. Text from models and files
// only ever becomes text nodes: nothing here writes HTML.

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Charts. Small multiples are as wide as the page lets them be.
function drawChart(figure) {
  const spec = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const room = figure.clientWidth, narrow = room < 560;
  const label = { labelColor: "var(--ink)", titleColor: "var(--soft)", titleFontWeight: "normal" };
  spec.config = {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: "var(--line)" },
    axis: { ...label, gridColor: "var(--line)", domainColor: "var(--soft)", tickColor: "var(--soft)",
            labelFontSize: 12, titleFontSize: 12 },
    text: { fontSize: 12 },
  };
  if (spec.facet && typeof spec.spec.width === "number") {
    spec.columns = narrow ? 1 : room < 800 ? Math.min(2, spec.columns) : spec.columns;
    const layers = spec.spec.layer, y = layers[layers.length - 1].encoding.y;
    const names = y.type === "nominal" ? y.sort.flatMap((name) => name.split(" \u2212 ").map((one) => one.length + 2)) : [3];
    const limit = narrow ? 130 : 190;
    for (const layer of layers) if (layer.encoding.y && layer.encoding.y.type === "nominal") layer.encoding.y.axis.labelLimit = limit;
    const labels = Math.min(7 * Math.max(...names), limit) + 24;
    const fit = (room - labels - (y.type === "nominal" ? 0 : 30)) / spec.columns - 26;
    spec.spec.width = Math.min(Math.max(120, fit), 560);
  } else if (spec.facet && narrow) spec.columns = 1;
  const options = { actions: false, renderer: "svg", mode: "vega-lite", logLevel: 1 };
  return window.vegaEmbed(figure.querySelector(".plot"), spec, options).then(({ view }) => {
    const hidden = new Set();
    for (const button of figure.querySelectorAll(".legend button")) {
      button.addEventListener("click", () => {
        const name = button.dataset.series, off = !hidden.delete(name);
        if (off) hidden.add(name);
        button.setAttribute("aria-pressed", String(!off));
        view.signal("hidden", [...hidden]).runAsync();
      });
    }
    figure.dataset.drawn = "true";
  });
}

// Tables.
function number(cell) {
  const found = cell.textContent.replace("<", "").replaceAll("\u2212", "-").match(/[-+]?\d*\.?\d+/);
  return found ? parseFloat(found[0]) : -Infinity;
}

function makeSortable(table) {
  const body = table.tBodies[0], original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = element("button", { type: "button", title: "sort" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === null ? "descending" : now === "descending" ? "ascending" : null;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      const rows = [...original];
      if (next) {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const key = column ? (a, b) => number(a.cells[column]) - number(b.cells[column])
          : (a, b) => b.cells[0].textContent.localeCompare(a.cells[0].textContent);
        rows.sort((a, b) => sign * key(a, b) || 0);
      }
      body.replaceChildren(...rows);
    });
  });
}

function offerDownload(table) {
  const title = table.parentNode.getAttribute("aria-label");
  const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
  const give = () => {
    const lines = [...table.rows].map((row) => [...row.cells].map((c) => quoted(c.textContent)).join(","));
    const url = URL.createObjectURL(new Blob(["\ufeff" + lines.join("\r\n")], { type: "text/csv" }));
    element("a", { href: url, download: title.replace(/[^\w.-]+/g, "_") + ".csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };
  const button = element("button", { type: "button", onclick: give }, "Download as CSV");
  table.parentNode.after(element("p", { class: "tools" }, button));
}

// Examples. `arms` are {name, colour, hollow}; a benchmark has `pictures` (data URLs), names of `maps`, and
// `items` {id, picture (its number), question, truth, seen, answers: {arm: {text, wrong, right, missed, ok,
// looked}}}; wrong and right are lists of [start, end, object] in characters of the text.
function marked(answer, look) {
  const found = [...(answer.wrong || []).map((w) => [...w, "wrong"]),
                 ...(answer.right || []).map((w) => [...w, "right"])].sort((a, b) => a[0] - b[0]);
  const characters = [...answer.text];
  const nodes = [];
  let at = 0;
  for (const [start, end, object, kind] of found) {
    if (start < at) continue;
    nodes.push(characters.slice(at, start).join(""));
    const seen = (answer.looked || []).find((word) => word.start === start);
    const says = kind === "wrong" ? `${object}: not in the picture` : `${object}: in the picture`;
    const attributes = { class: kind, title: says };
    if (seen) Object.assign(attributes, { class: `${kind} looked`, role: "button", tabindex: "0",
      "aria-pressed": "false", title: `${says}; click to see where the model looked` });
    const word = element("mark", attributes, characters.slice(start, end).join(""));
    if (seen) {
      word.addEventListener("click", () => look(word, seen));
      word.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        look(word, seen);
      });
    }
    nodes.push(word);
    at = end;
  }
  nodes.push(characters.slice(at).join(""));
  return nodes;
}

const mistakes = (answer) => (answer.ok === undefined ? (answer.wrong || []).length : answer.ok ? 0 : 1);
const objects = (answer) => new Set((answer.right || []).map((w) => w[2]));
const CHANGES = {
  "all": () => true,
  "removed a mistake": (a, b) => mistakes(b) < mistakes(a),
  "added a mistake": (a, b) => mistakes(b) > mistakes(a),
  "lost an object": (a, b) => [...objects(a)].some((one) => !objects(b).has(one)),
  "changed": (a, b) => a.text !== b.text,
  "changed nothing": (a, b) => a.text === b.text,
};
const PAGE = 8;

// Where the model looked when it chose a word: its attention over the picture, and its masses.
function looking(source, seen, names, word, shown, choose, close) {
  const [rows, columns] = seen.grid, cells = rows * columns;
  const bytes = Uint8Array.from(atob(word.maps), (c) => c.charCodeAt(0));
  const canvas = element("canvas", { width: columns, height: rows, "aria-hidden": "true" });
  const [left, top, right, bottom] = seen.box;
  canvas.style.cssText = `left:${100 * left}%;top:${100 * top}%;width:${100 * (right - left)}%;height:${100 * (bottom - top)}%`;
  const bars = element("div", { class: "bars" }), note = element("p", { class: "note" });
  const picker = element("select", { "aria-label": "layer or head" },
    ...names.map((name, n) => element("option", { value: n }, name)));
  const draw = () => {
    const at = Number(picker.value), context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let cell = 0; cell < cells; cell++) {
      const value = bytes[at * cells + cell];
      image.data.set([255, 176, 0, Math.round(0.9 * value)], 4 * cell);
    }
    context.putImageData(image, 0, 0);
    bars.replaceChildren(...["image", "text", "before"].flatMap((name, n) => {
      const share = word.mass[at][n], bar = element("i");
      bar.style.width = `${Math.max(0.5, 100 * share)}%`;
      return [element("span", {}, name), element("span", {}, bar), element("span", {}, `${(100 * share).toFixed(1)} %`)];
    }));
    note.textContent = `The strongest cell has ${(100 * word.peak[at]).toFixed(1)} % of all attention of this step.`;
    choose(at);
  };
  picker.value = String(Math.min(shown, names.length - 1));
  picker.addEventListener("change", draw);
  const frame = element("div", { class: "frame" }, element("img", { src: source, alt: "" }), canvas);
  const panel = element("div", { class: "looking", role: "group", "aria-label": `attention at ${word.text}` },
    element("div", { class: "picture" }, frame),
    element("div", {}, element("h3", {}, `Where it looked to choose \u201c${word.text}\u201d`),
      element("label", {}, "shown: ", picker), bars, note,
      element("button", { type: "button", onclick: close }, "close")));
  draw();
  return panel;
}

function browse(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const style = Object.fromEntries(data.arms.map((arm) => [arm.name, arm]));
  const [base, ...others] = data.arms.map((arm) => arm.name);
  const option = (name) => element("option", { value: name }, name);
  const suite = element("select", { "aria-label": "benchmark" }, ...data.benchmarks.map((b) => option(b.name)));
  const arm = element("select", { "aria-label": "arm" }, ...others.map(option));
  const both = element("select", { "aria-label": "answers shown" }, element("option", { value: "" }, "this arm"),
    element("option", { value: "all" }, "all arms"));
  const search = element("input", { type: "search", placeholder: "search words or ids", "aria-label": "search" });
  const chips = element("div", { class: "controls chips", role: "group", "aria-label": "filter" });
  const count = element("span", { class: "count", role: "status" });
  const list = element("div", { class: "list" });
  const back = element("button", { type: "button" }, "\u2190 previous");
  const forth = element("button", { type: "button" }, "next \u2192");
  let start = 0, found = [], change = "all", map = 0;
  const benchmark = () => data.benchmarks.find((one) => one.name === suite.value);

  const card = (item) => {
    const rows = [], source = benchmark().pictures[item.picture];
    const article = element("article", { tabindex: "0", "aria-label": `example ${item.id}` });
    const close = () => {
      for (const one of article.querySelectorAll("mark[aria-pressed=true]")) one.setAttribute("aria-pressed", "false");
      const open = article.querySelector(".looking");
      if (open) open.remove();
    };
    const look = (mark, word) => {
      const again = mark.getAttribute("aria-pressed") === "true";
      close();
      if (again) return;
      mark.setAttribute("aria-pressed", "true");
      const shown = { ...word, text: mark.textContent };
      article.append(looking(source, item.seen, benchmark().maps, shown, map, (at) => { map = at; }, close));
    };
    for (const { name } of data.arms) {
      const answer = item.answers[name];
      if (!answer || (both.value !== "all" && name !== base && name !== arm.value)) continue;
      const heading = element("dt", {}, name);
      heading.style.cssText = `--of:${style[name].colour};--fill:${style[name].hollow ? "var(--paper)" : style[name].colour}`;
      if (answer.ok !== undefined) heading.append(" ",
        element("span", { class: answer.ok ? "ok" : "ko" }, answer.ok ? "\u2713 right" : "\u2717 wrong"));
      const gone = (answer.missed || []).flatMap((one) => [element("span", { class: "gone" }, one), " "]);
      const missed = gone.length ? [element("p", { class: "missed" }, "missed ", ...gone)] : [];
      rows.push(heading, element("dd", {}, ...marked(answer, look), ...missed));
    }
    const about = [item.question ? element("p", {}, item.question) : "",
                   item.truth ? element("p", {}, `right answer: ${item.truth}`) : "",
                   element("p", {}, `id ${item.id}`)];
    const picture = source ? [element("img", { src: source, alt: `picture ${item.id}` })] : [];
    for (const one of picture) one.addEventListener("load", () => { if (one.naturalWidth <= 96) one.className = "small"; });
    article.append(element("div", { class: "picture" }, element("div", { class: "frame" }, ...picture), ...about),
      element("dl", { class: "answers" }, ...rows));
    return article;
  };
  const show = () => {
    list.replaceChildren(...found.slice(start, start + PAGE).map(card));
    const last = Math.min(start + PAGE, found.length);
    count.textContent = found.length ? `${start + 1}\u2013${last} of ${found.length}` : "none";
    back.disabled = start === 0;
    forth.disabled = last >= found.length;
  };
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const pair = (item) => [item.answers[base], item.answers[arm.value] || item.answers[base]];
    const said = benchmark().items.filter((item) => {
      const [before, after] = pair(item);
      const text = before && [item.id, item.question || "", before.text, after.text].join(" ").toLowerCase();
      return before && words.every((word) => text.includes(word));
    });
    const captions = benchmark().items.some((item) => !item.question);
    root.querySelector(".key").hidden = !captions; // of words that a question's answer does not mark
    const kinds = (others.length ? Object.keys(CHANGES) : ["all"]).filter((kind) => captions || kind !== "lost an object");
    if (!kinds.includes(change)) change = "all";
    const groups = Object.fromEntries(kinds.map((kind) => [kind, said.filter((item) => CHANGES[kind](...pair(item)))]));
    const focused = chips.contains(document.activeElement);
    chips.replaceChildren(...kinds.map((kind) => element("button",
      { type: "button", "data-kind": kind, "aria-pressed": String(kind === change),
        onclick: () => { change = kind; apply(); } }, `${kind} `, element("small", {}, String(groups[kind].length)))));
    if (focused) chips.querySelector("[aria-pressed=true]").focus();
    found = groups[change];
    start = 0;
    show();
  };
  const turn = (to) => { start = to; show(); };
  back.addEventListener("click", () => turn(Math.max(0, start - PAGE)));
  forth.addEventListener("click", () => turn(start + PAGE));
  for (const control of [suite, arm]) control.addEventListener("change", apply);
  both.addEventListener("change", show);
  search.addEventListener("input", apply);
  root.addEventListener("keydown", (event) => {
    if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    const cards = [...list.children], at = document.activeElement.closest("article");
    if (event.key === "ArrowRight" && !forth.disabled) { forth.click(); list.firstChild.focus(); }
    else if (event.key === "ArrowLeft" && !back.disabled) { back.click(); list.firstChild.focus(); }
    else if (event.key === "/") search.focus();
    else if (step) {
      const next = cards[at ? cards.indexOf(at) + step : 0];
      if (next) next.focus();
    } else return;
    event.preventDefault();
  });
  const named = (text, control, many) => (many ? [element("label", {}, `${text} `, control)] : []);
  root.append(element("div", { class: "controls" },
    ...named("benchmark", suite, data.benchmarks.length > 1), ...named("arm", arm, others.length),
    ...named("show", both, others.length > 1), search), chips, list,
    element("div", { class: "controls" }, back, forth, count));
  apply();
}

document.querySelectorAll("figure.chart").forEach((figure) => drawChart(figure));
document.querySelectorAll(".scroll > table").forEach((table) => { makeSortable(table); offerDownload(table); });
document.querySelectorAll(".examples").forEach(browse);
addEventListener("beforeprint", () => document.querySelectorAll("main > section:not(#repeat) details").forEach((one) => { one.open = true; }));
