"use strict";
// Everything that is shown goes in as text nodes; pictures are data URIs that were checked when the page was written.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
function make(name, parent, text, cls) {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = text;
  if (cls) node.className = cls;
  if (parent) parent.append(node);
  return node;
}
function fill(select, options, keep) {           // options: [value, text]; the old choice stays when it still exists
  const before = keep === undefined ? select.value : keep;
  select.replaceChildren(...options.map(([value, text]) => { const o = make("option", null, text); o.value = value; return o; }));
  if (options.some(([value]) => value === before)) select.value = before;
}
const swatch = label => {
  const found = document.querySelector('.legend [data-system="' + data.labels.indexOf(label) + '"] svg');
  return found ? found.cloneNode(true) : document.createTextNode("");
};

// ---- curves: a legend that hides lines, and points one out
const drawings = document.querySelector(".drawings");
document.querySelectorAll(".legend button").forEach(button => {
  const lines = document.querySelectorAll('.line[data-system="' + button.dataset.system + '"]');
  const point = on => { drawings.classList.toggle("one", on); lines.forEach(l => l.classList.toggle("on", on)); };
  button.onclick = () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    lines.forEach(l => { l.style.display = shown ? "" : "none"; });
  };
  button.onmouseenter = () => point(button.getAttribute("aria-pressed") === "true");
  button.onmouseleave = () => point(false);
});

// ---- by type
function types() {
  const splits = Object.keys(data.types);
  if (!splits.length) return;
  $("types").hidden = false;
  document.querySelector('[data-needs="types"]').hidden = false;
  fill($("typeSplit"), splits.map(s => [s, s]));
  const draw = () => {
    const keys = data.types[$("typeSplit").value];
    fill($("typeKey"), Object.keys(keys).map(k => [k, k]));
    const table = keys[$("typeKey").value], names = Object.keys(table.metrics);
    fill($("typeMetric"), names.map(m => [m, m]));
    const values = table.metrics[$("typeMetric").value], labels = data.labels.filter(l => l in values);
    fill($("typeOrder"), [["name", "as named"], ["queries", "most queries"], ...labels.map(l => [l, "best by " + l])]);
    const order = table.values.map((_, i) => i), by = $("typeOrder").value;
    const weight = by === "queries" ? table.queries : values[by];
    if (weight) order.sort((i, j) => (weight[j] ?? -1) - (weight[i] ?? -1) || i - j);
    const made = document.createElement("table"), head = make("tr", make("thead", made)), body = make("tbody", made);
    [$("typeKey").value, "queries", ...labels].forEach((t, i) => { make("th", head, t, i ? "n" : "").scope = "col"; });
    order.forEach(i => {
      const row = make("tr", body);
      make("th", row, table.values[i]).scope = "row";
      make("td", row, table.queries[i].toLocaleString("en"), "n count");
      const known = labels.map(l => values[l][i]).filter(v => v !== null), top = Math.max(...known);
      labels.forEach(l => {
        const v = values[l][i], cell = make("td", row, undefined, "n");
        if (v === null) { cell.textContent = "–"; return; }
        cell.style.setProperty("--v", Math.min(Math.max(v, 0), 1).toFixed(3));
        const best = known.length > 1 && v > top - 1e-9 && Math.min(...known) < top - 1e-9;
        make(best ? "b" : "span", cell, v.toFixed(3));
      });
    });
    $("typeTable").replaceChildren(made);
  };
  for (const id of ["typeSplit", "typeKey", "typeMetric", "typeOrder"]) $(id).onchange = draw;
  $("typeTools").onsubmit = e => e.preventDefault();
  draw();
}

// ---- examples
const shown = data.examples, NONE = "", FIRST = 5;
let part = null, listed = [], chosen = null;     // the split, the ids in the list, the id on the right

function place(label, id) {                      // rank of the first relevant passage; 0: none; null: nobody knows
  const answer = (part.runs[label] || {})[id];
  if (!answer) return null;
  const judged = ([, , relevant, holds]) => relevant === null || relevant === undefined ? holds : relevant;
  if (answer.top.length && answer.top.every(t => judged(t) === null || judged(t) === undefined)) return null;
  return answer.top.findIndex(t => judged(t) === true) + 1;
}
function right(label, id) {
  const rank = place(label, id);
  return rank === null ? null : rank > 0 && rank <= Number($("depth").value);
}
function verdict(label, id) {
  const rank = place(label, id), good = right(label, id);
  if (rank === null) return ["unknown", "· not asked or not judged"];
  if (good) return ["right", "✓ rank " + rank];
  const ranks = Object.values(part.runs[label][id].ranks).filter(r => r), below = rank || (ranks.length ? Math.min(...ranks) : 0);
  return ["wrong", below ? "✗ rank " + below : "✗ not found"];
}
const FILTERS = {
  all: ["all", () => true],
  right: ["right", (a) => a === true],
  wrong: ["wrong", (a) => a === false],
  gained: ["right, the other wrong", (a, b) => a === true && b === false],
  lost: ["wrong, the other right", (a, b) => a === false && b === true],
  both: ["both right", (a, b) => a === true && b === true],
  neither: ["both wrong", (a, b) => a === false && b === false],
};
function words(query) {
  const gold = query.gold.map(id => { const d = part.documents[id]; return id + " " + d.title + " " + d.text; });
  return [query.id, query.question, ...Object.values(query.meta).map(String), ...query.answers, ...gold].join(" ").toLowerCase();
}
function choose(id, scroll) {
  chosen = id;
  $("list").querySelectorAll(".query").forEach(node => {
    const on = node.dataset.id === id;
    node.setAttribute("aria-selected", on);
    if (on) {
      $("list").setAttribute("aria-activedescendant", node.id);
      if (scroll) $("list").scrollTop = node.offsetTop - $("list").clientHeight / 2 + node.clientHeight / 2;
    }
  });
  detail();
}
function step(by) {
  if (!listed.length) return;
  const at = listed.indexOf(chosen);
  choose(listed[Math.min(Math.max(at + by, 0), listed.length - 1)], true);
}
function list() {
  const a = $("a").value, b = $("b").value, test = FILTERS[$("filter").value][1], text = $("search").value.trim().toLowerCase();
  const found = part.queries.filter(q => test(right(a, q.id), b ? right(b, q.id) : null) && (!text || words(q).includes(text)));
  listed = found.map(q => q.id);
  $("list").replaceChildren();
  found.forEach((query, i) => {
    const row = make("div", $("list"), undefined, "query" + (query.images.length ? "" : " bare"));
    row.id = "query" + i; row.dataset.id = query.id; row.setAttribute("role", "option"); row.setAttribute("aria-selected", "false");
    if (query.images.length) { const image = make("img", row); image.src = shown.pictures[query.images[0]]; image.alt = ""; }
    const side = make("div", row);
    make("div", side, query.question || "(the picture alone)", "text");
    const verdicts = make("div", side, undefined, "verdicts");
    for (const label of b ? [a, b] : [a]) {
      const [cls, said] = verdict(label, query.id), node = make("span", verdicts, undefined, cls);
      if (b) node.append(swatch(label), " ");
      node.append(said);
      if (b) make("span", node, " (" + label + ")", "sr");
    }
    row.onclick = () => { choose(query.id); $("list").focus({preventScroll: true}); };
  });
  $("count").textContent = found.length + " of " + part.queries.length + " examples" + (found.length ? "" : "; choose another filter or search");
  choose(listed.includes(chosen) ? chosen : listed[0] ?? null, true);
}
function marked(node, text, answers) {           // answers of the query stand out in a passage
  const wanted = answers.filter(a => a.trim()).sort((x, y) => y.length - x.length).map(a => a.trim().replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!wanted.length) { node.textContent = text; return; }
  let end = 0;
  for (const found of text.matchAll(new RegExp("(?<![\\p{L}\\p{N}])(?:" + wanted.join("|") + ")(?![\\p{L}\\p{N}])", "giu"))) {
    node.append(text.slice(end, found.index));
    make("mark", node, found[0]);
    end = found.index + found[0].length;
  }
  node.append(text.slice(end));
}
function pictures(numbers, parent, alt) {
  numbers.forEach(n => { const image = make("img", parent); image.src = shown.pictures[n]; image.alt = alt; });
}
function body(parent, text, answers) {
  const node = make("p", parent, undefined, "body");
  marked(node, text, answers);
  if (text.length < 240) return;
  node.classList.add("short");
  const more = make("button", parent, "more", "more");
  more.type = "button"; more.setAttribute("aria-expanded", "false");
  more.onclick = () => {
    const short = node.classList.toggle("short");
    more.textContent = short ? "more" : "less";
    more.setAttribute("aria-expanded", String(!short));
  };
}
function ranked(label, query, parent) {
  const column = make("div", parent), title = make("h4", column), answer = (part.runs[label] || {})[query.id];
  title.append(swatch(label), " " + label);
  if (!answer) { make("p", column, "This run's sample does not hold the query.", "soft"); return; }
  const [cls, said] = verdict(label, query.id);
  make("p", column, said + (answer.without.length ? " · asked without the " + answer.without.join(" and the ") : ""), cls);
  const all = make("ol", column);
  if (!answer.top.length) make("p", column, "Nothing was found.", "soft");
  const hits = answer.top.map(([id, score, relevant, holds], i) => {
    const document_ = part.documents[id], good = relevant === true || (relevant !== false && holds === true);
    const hit = make("li", all, undefined, "hit" + (good ? " relevant" : "")), head = make("div", hit, undefined, "head");
    make("span", head, i + 1 + ".", "rank");
    make("span", head, document_.title || id, "title");
    if (relevant === true) make("span", head, "✓ relevant", "mark");
    if (holds === true) make("span", head, "✓ holds an answer", "mark");
    make("span", head, typeof score === "number" ? score.toFixed(3) : "", "score");
    body(hit, document_.text, query.answers);
    pictures(document_.images || [], hit, "Picture of the passage");
    if (document_.title) make("div", hit, id, "soft id");
    hit.hidden = i >= FIRST;
    return hit;
  });
  if (hits.length <= FIRST) return;
  const more = make("button", column, hits.length - FIRST + " more", "rest");
  more.type = "button";
  more.onclick = () => { hits.forEach(h => { h.hidden = false; }); hits[FIRST].tabIndex = -1; hits[FIRST].focus(); more.remove(); };
}
function detail() {
  const query = part.queries.find(q => q.id === chosen);
  $("detail").replaceChildren();
  if (!query) return;
  const asked = make("div", $("detail"), undefined, "asked");
  if (query.images.length) pictures(query.images, make("div", asked, undefined, "pictures"), "The query's picture");
  const side = make("div", asked);
  make("h3", side, query.question || "(the picture alone)");
  if (query.instruction) make("p", side, query.instruction, "soft");
  const chips = make("div", side, undefined, "chips");
  make("span", chips, query.id);
  Object.entries(query.meta).forEach(([key, value]) => make("span", chips, key + ": " + value));
  if (query.answers.length) make("p", side, "Answers: " + query.answers.join(" · "), "soft");
  query.gold.forEach(id => {
    const gold = make("div", side, undefined, "gold"), found = part.documents[id];
    make("b", gold, "Relevant: " + (found.title || id));
    body(gold, found.text, query.answers);
    pictures(found.images || [], gold, "Picture of the relevant passage");
  });
  const columns = make("div", $("detail"), undefined, "ranked");
  ranked($("a").value, query, columns);
  if ($("b").value) ranked($("b").value, query, columns);
}
function open(split) {
  const first = part === null;
  part = shown.splits[split];
  const labels = data.labels.filter(l => l in part.runs);
  fill($("a"), labels.map(l => [l, l]), first ? labels[0] : $("a").value);
  fill($("b"), [[NONE, "(none)"], ...labels.map(l => [l, l])], first && labels.length > 1 ? labels[1] : $("b").value);
  const texts = Object.keys(part.documents).length;
  $("sample").textContent = part.queries.length.toLocaleString("en") + " of " + part.of.toLocaleString("en") + " queries of “" + split +
    "”, drawn by chance and the same for every run, with the top " + Math.max(...Object.values(part.runs).flatMap(r => Object.values(r).map(x => x.top.length)), 0) +
    " of each and " + texts.toLocaleString("en") + " passages (long ones are cut). " + shown.pictures.length + " pictures are embedded in this page" +
    (shown.refused ? ", " + shown.refused + " could not be." : ".");
  filters();
}
function filters() {
  fill($("filter"), Object.entries(FILTERS).filter(([, [, test]]) => $("b").value || test.length < 2).map(([key, [text]]) => [key, text]));
  list();
}
function examples() {
  const splits = Object.keys(shown.splits);
  if (!splits.length) return;
  $("examples").hidden = false;
  document.querySelector('[data-needs="examples"]').hidden = false;
  fill($("split"), splits.map(s => [s, s]));
  $("split").onchange = () => open($("split").value);
  for (const id of ["a", "b"]) $(id).onchange = filters;
  for (const id of ["filter", "depth"]) $(id).onchange = list;
  $("search").oninput = list;
  $("tools").onsubmit = e => e.preventDefault();
  $("list").onkeydown = event => {
    const by = {ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity, PageDown: 8, PageUp: -8}[event.key];
    if (by !== undefined) { event.preventDefault(); step(by); }
  };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "/") { event.preventDefault(); $("search").focus(); }
    else if (event.key === "x" && $("b").value) { const a = $("a").value; $("a").value = $("b").value; $("b").value = a; filters(); }
  });
  open(splits[0]);
}
types();
examples();
