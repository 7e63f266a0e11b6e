/* Draws an Explanation (evaluation/explain.py: as_json): what each word looks at, and which passage token each query row
   matched. Shared by the page that runs.visualize writes, which holds it, and the searcher's page, which loads it. */
"use strict";
const Why = (() => {
  function make(name, parent, text, cls) {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (cls) node.className = cls;
    if (parent) parent.append(node);
    return node;
  }
  const STOPS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  function colour(v) {
    const x = Math.min(Math.max(v, 0), 1) * (STOPS.length - 1), i = Math.min(Math.floor(x), STOPS.length - 2);
    return STOPS[i].map((c, j) => Math.round(c + (STOPS[i + 1][j] - c) * (x - i)));
  }

  /* The picture, its heat map and a button per word. Returns {showRow(row), rest()} for what lies beside it. */
  function look(data, parent) {
    const maps = data.maps, picture = data.picture;
    if (!picture) return {showRow() {}, rest() {}};
    const [rows, columns] = picture.grid;
    let head = 0, kept = -1;                     // kept: the word shown when nothing is hovered; -1: all together
    make("h2", parent, maps ? "What each word looks at" : "What the tower saw");
    const frame = make("div", parent, undefined, "frame"), image = make("img", frame), heat = make("canvas", frame);
    image.src = picture.uri;
    image.alt = "The image as the vision tower saw it, " + picture.width + " by " + picture.height + " pixels";
    heat.setAttribute("aria-hidden", "true");
    const legend = make("div", undefined, undefined, "legend");
    const low = make("span", legend), ramp = make("i", legend), high = make("span", legend);
    const said = make("p", undefined, undefined, "soft said");
    if (maps) parent.append(legend);
    parent.append(said);
    said.setAttribute("aria-live", "polite");

    function range() {                           // one scale for all maps of a head, so that words compare
      const real = maps.words[head].filter((_, i) => !data.words[i].marker);
      const all = [...(real.length ? real : maps.words[head]), maps.whole[head]].flat();
      return [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];  // too many for a call
    }
    const value = v => maps.unit === "attention" ? (v * rows * columns).toFixed(2) + "×" : v.toFixed(3);
    const place = patch => "row " + (Math.floor(patch / columns) + 1) + ", column " + (patch % columns + 1);
    function cells(paint) {
      heat.width = columns; heat.height = rows;
      const made = new ImageData(columns, rows);
      for (let i = 0; i < rows * columns; i++) made.data.set(paint(i), 4 * i);
      heat.getContext("2d").putImageData(made, 0, 0);
    }
    function paint(values, what) {
      const [least, most] = range();
      cells(i => [...colour((values[i] - least) / (most - least || 1)), 165]);
      image.className = "grey";
      low.textContent = value(least); high.textContent = value(most);
      const top = values.indexOf(Math.max(...values));
      said.textContent = what + ": most at " + place(top) + " (" + value(values[top]) + ").";
    }
    function outline(patches, what) {
      const inside = new Set(patches);
      cells(i => [0, 0, 0, inside.has(i) ? 0 : 175]);
      image.className = "";
      said.textContent = what + ": its patches are the bright ones.";
    }
    function plain(what) {
      heat.width = 1; image.className = "";
      said.textContent = what || "";
    }
    function show(word) {
      if (!maps) plain();
      else if (word < 0) paint(maps.whole[head], "all words together");
      else paint(maps.words[head][word], "“" + data.words[word].text + "”");
    }
    function showRow(row) {
      if (row.patches) outline(row.patches, row.label);
      else if (row.head !== null && maps) {
        const before = head;
        head = maps.heads.indexOf(String(row.head + 1)); if (head < 0) head = 0;
        paint(maps.whole[head], row.label);
        head = before;
      } else if (row.word !== null) show(row.word);
      else plain(row.label + ": made from the whole picture.");
    }
    if (maps) {
      ramp.style.background = "linear-gradient(90deg," + STOPS.map(c => "rgb(" + c + ")").join() + ")";
      if (maps.heads.length > 1) {
        const choice = make("select", make("label", make("p", parent), "Head "));
        maps.heads.forEach((name, i) => { make("option", choice, name).value = i; });
        choice.onchange = () => { head = Number(choice.value); show(kept); };
      }
      const chips = [], words = make("div", parent, undefined, "words");
      words.setAttribute("role", "group"); words.setAttribute("aria-label", "Words of the question");
      const chip = (text, index, cls) => {
        const button = make("button", words, text, cls);
        button.type = "button";
        button.onmouseenter = button.onfocus = () => show(index);
        button.onmouseleave = button.onblur = () => show(kept);
        button.onclick = () => { kept = index; show(index); chips.forEach(c => c.setAttribute("aria-pressed", c === button)); };
        button.setAttribute("aria-pressed", index === -1);
        chips.push(button);
      };
      chip("all words", -1);
      data.words.forEach((word, i) => chip(word.text, i, word.marker ? "marker" : ""));
      make("p", parent, maps.unit === "attention"
        ? "Attention of a word over " + picture.grid.join(" × ") + " patches; 1× is what looking everywhere alike would give. One scale for all words of a head."
        : "Cosine between a word and each of " + picture.grid.join(" × ") + " patches; all together: the best word.", "soft");
    }
    show(-1);
    return {showRow, rest: () => show(kept)};
  }

  /* One passage into `card`: the parts of its score, its tokens, and a line per query row. seen: what look() returned. */
  const colourOf = kind => kind === "text" ? "text" : "visual";
  function passage(data, found, card, seen) {
    const bar = make("div", card, undefined, "bar"), parts = [];
    const kinds = Object.entries(found.kinds), total = kinds.reduce((s, [, v]) => s + Math.max(v, 0), 0) || 1;
    kinds.forEach(([kind, v], i) => {
      const piece = make("span", bar);
      piece.style.width = 100 * Math.max(v, 0) / total + "%";
      piece.style.background = "var(--" + colourOf(kind) + ")";
      piece.style.opacity = colourOf(kind) === "text" ? .8 : Math.max(.3, 1 - .25 * i);
      piece.title = kind + " " + v.toFixed(3);
      parts.push(kind + " " + v.toFixed(2) + (found.score > 0 ? " (" + Math.round(100 * v / found.score) + " %)" : ""));
    });
    make("p", card, "The score is the sum over query rows: " + parts.join(", ") + ".", "soft");
    const got = found.tokens.map(() => 0), by = found.tokens.map(() => []);
    found.matches.forEach((m, i) => { if (m.token !== null) { got[m.token] += m.similarity; by[m.token].push(i); } });
    const most = Math.max(...got, 1e-9), text = make("p", card, undefined, "passage");
    const lines = [], rowOf = m => data.rows[found.matches[m].row];
    const box = make("div", card, undefined, "scroll"), table = make("table", box);
    const spans = found.tokens.map((token, i) => {
      text.append(token.before);
      const span = make("span", text, token.text, token.marker || !token.stored ? "off" : "");
      if (by[i].length) {
        const best = by[i].reduce((a, b) => found.matches[b].similarity > found.matches[a].similarity ? b : a);
        span.style.background = "rgb(var(--mark) / " + (0.12 + 0.75 * Math.max(got[i], 0) / most).toFixed(2) + ")";
        span.tabIndex = 0;
        span.title = by[i].length + (by[i].length > 1 ? " query rows, " : " query row, ") + got[i].toFixed(2);
        span.setAttribute("role", "img");
        span.setAttribute("aria-label", token.text + ", matched by " + by[i].map(m => rowOf(m).label).join(", "));
        span.onmouseenter = span.onfocus = () => {
          by[i].forEach(m => lines[m].classList.add("on"));
          box.scrollTop = lines[by[i][0]].offsetTop - 40;
          seen.showRow(rowOf(best));
        };
        span.onmouseleave = span.onblur = () => { by[i].forEach(m => lines[m].classList.remove("on")); seen.rest(); };
      }
      return span;
    });
    box.tabIndex = 0;
    box.setAttribute("role", "region"); box.setAttribute("aria-label", "Query rows and what they matched in " + found.id);
    const top = make("tr", make("thead", table)), body = make("tbody", table);
    [["query row", ""], ["kind", "kind"], ["passage token", ""], ["similarity", "n"], ["share", "n"]].forEach(([t, c]) => {
      make("th", top, t, c).scope = "col";
    });
    found.matches.forEach(m => {
      const row = data.rows[m.row], line = make("tr", body);
      const word = row.word === null ? "" : data.words[row.word].text;
      const inside = word && word !== row.label && !data.words[row.word].marker;
      make("td", line, inside ? row.label + " (in " + word + ")" : row.label, colourOf(row.kind));
      make("td", line, row.kind, "kind " + colourOf(row.kind));
      make("td", line, m.token === null ? "–" : found.tokens[m.token].text);
      make("td", line, m.similarity.toFixed(3), "n");
      make("td", line, (100 * m.share).toFixed(1) + " %", "n");
      line.tabIndex = 0;
      line.onmouseenter = line.onfocus = () => { if (m.token !== null) spans[m.token].classList.add("on"); seen.showRow(row); };
      line.onmouseleave = line.onblur = () => { if (m.token !== null) spans[m.token].classList.remove("on"); seen.rest(); };
      lines.push(line);
    });
  }
  return {make, look, passage};
})();
