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

function drawChart(figure) {
  const spec = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const narrow = figure.clientWidth < 560;
  const label = { labelColor: "var(--ink)", titleColor: "var(--soft)", titleFontWeight: "normal" };
  spec.config = {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: "var(--line)" },
    axis: { ...label, gridColor: "var(--line)", domainColor: "var(--soft)", tickColor: "var(--soft)",
            labelFontSize: 12, titleFontSize: 12, labelLimit: narrow ? 110 : 220 },
    text: { fontSize: 12 },
  };
  if (narrow && spec.layer) for (const layer of spec.layer) {
    const y = layer.encoding && layer.encoding.y;
    if (y && y.axis && y.axis.labelLimit) y.axis.labelLimit = 110;
  }
  if (narrow && spec.facet) spec.columns = 1;
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
      let rows = [...original];
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
  const title = table.closest("section").querySelector("h2").textContent;
  const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
  const link = element("a", { href: "#", role: "button" }, "Download as CSV");
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const lines = [...table.rows].map((row) => [...row.cells].map((c) => quoted(c.textContent)).join(","));
    const url = URL.createObjectURL(new Blob(["\ufeff" + lines.join("\r\n")], { type: "text/csv" }));
    element("a", { href: url, download: title.replace(/[^\w.-]+/g, "_") + ".csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  table.closest(".scroll").after(element("p", { class: "tools" }, link));
}

// Examples. `data.pictures` are data URLs; `data.items` are {id, picture (its number), truth, question,
// answers: {arm: {text, wrong, right, missed, ok}}}; wrong and right are lists of [start, end, object] in
// characters of the text.
function marked(answer) {
  const found = [...(answer.wrong || []).map((w) => [...w, "wrong"]),
                 ...(answer.right || []).map((w) => [...w, "right"])].sort((a, b) => a[0] - b[0]);
  const characters = [...answer.text];
  const nodes = [];
  let at = 0;
  for (const [start, end, object, kind] of found) {
    if (start < at) continue;
    nodes.push(characters.slice(at, start).join(""));
    const title = kind === "wrong" ? `${object}: not in the picture` : `${object}: in the picture`;
    nodes.push(element("mark", { class: kind, title }, characters.slice(start, end).join("")));
    at = end;
  }
  nodes.push(characters.slice(at).join(""));
  return nodes;
}

const mistakes = (answer) => (answer.ok === undefined ? (answer.wrong || []).length : answer.ok ? 0 : 1);
const objects = (answer) => new Set((answer.right || []).map((w) => w[2]));
const CHANGES = {
  all: () => true,
  changed: (a, b) => a.text !== b.text,
  removed: (a, b) => mistakes(b) < mistakes(a),
  added: (a, b) => mistakes(b) > mistakes(a),
  lost: (a, b) => [...objects(a)].some((one) => !objects(b).has(one)),
  same: (a, b) => a.text === b.text,
};
const CHANGE_NAMES = {
  all: "every example", changed: "the answer changed", removed: "removed a hallucination or mistake",
  added: "added a hallucination or mistake", lost: "lost an object that is there", same: "changed nothing",
};
const PAGE = 10;

function browse(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const [base, ...others] = data.arms;
  const arm = element("select", { "aria-label": "arm" }, ...others.map((n) => element("option", { value: n }, n)));
  const change = element("select", { "aria-label": "filter" },
    ...Object.entries(CHANGE_NAMES).map(([value, name]) => element("option", { value }, name)));
  const search = element("input", { type: "search", placeholder: "search words or ids", "aria-label": "search" });
  const count = element("span", { class: "count", role: "status" });
  const list = element("div", { class: "list" });
  const back = element("button", { type: "button" }, "\u2190 previous");
  const forth = element("button", { type: "button" }, "next \u2192");
  let start = 0, found = [];

  const card = (item) => {
    const rows = [];
    for (const name of data.arms) {
      const answer = item.answers[name];
      if (!answer || (others.length > 3 && name !== base && name !== arm.value)) continue;
      const verdict = answer.ok === undefined ? "" : answer.ok ? " \u2713" : " \u2717";
      const missed = answer.missed && answer.missed.length
        ? [element("br"), element("small", {}, "not named: " + answer.missed.join(", "))] : [];
      rows.push(element("dt", {}, name + verdict), element("dd", {}, ...marked(answer), ...missed));
    }
    const about = [item.question ? element("p", {}, item.question) : "",
                   item.truth ? element("p", {}, item.truth) : "",
                   element("p", {}, "id " + item.id)];
    const source = data.pictures[item.picture];
    const picture = source ? [element("img", { src: source, alt: "picture " + item.id, loading: "lazy" })] : [];
    for (const one of picture) one.addEventListener("load", () => { if (one.naturalWidth <= 96) one.className = "small"; });
    return element("article", { tabindex: "0" },
      element("div", { class: "picture" }, ...picture, ...about), element("dl", {}, ...rows));
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
    const test = CHANGES[change.value];
    found = data.items.filter((item) => {
      const before = item.answers[base], after = item.answers[arm.value] || before;
      if (!before || !test(before, after)) return false;
      const text = [item.id, item.question || "", before.text, after.text].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    start = 0;
    show();
  };
  back.addEventListener("click", () => { start = Math.max(0, start - PAGE); show(); });
  forth.addEventListener("click", () => { start += PAGE; show(); });
  for (const control of [arm, change]) control.addEventListener("change", apply);
  search.addEventListener("input", apply);
  root.addEventListener("keydown", (event) => {
    if (event.target === search || event.target.tagName === "SELECT") return;
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (event.key === "ArrowRight" && !forth.disabled) forth.click();
    else if (event.key === "ArrowLeft" && !back.disabled) back.click();
    else if (event.key === "/") search.focus();
    else if (step) {
      const cards = [...list.children];
      const next = cards[cards.indexOf(document.activeElement.closest("article")) + step];
      if (next) next.focus();
    } else return;
    event.preventDefault();
  });
  const armLabel = others.length ? [element("label", {}, "arm ", arm)] : [];
  root.append(element("div", { class: "controls" }, ...armLabel,
    element("label", {}, "show ", change), search, count, back, forth), list);
  apply();
}

document.querySelectorAll("figure.chart").forEach(drawChart);
document.querySelectorAll(".scroll > table").forEach((table) => { makeSortable(table); offerDownload(table); });
document.querySelectorAll(".examples").forEach(browse);
