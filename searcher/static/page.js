/* The searcher's page. Everything it knows lives in this tab: nothing is stored, here or on the server. */
"use strict";
const $ = id => document.getElementById(id), make = Why.make;
const ui = {image: null, token: "", limits: {max_bytes: Infinity}, running: null, shown: null};
const asked = [];                                // entries, newest first: {question, image, k, reply, why: Map, ms}
const KEPT = 20;
const narrow = matchMedia("(max-width: 56rem)");  // as in page.css: one column

// ---- talking to the server
async function call(path, options = {}) {
  const headers = ui.token ? {Authorization: "Bearer " + ui.token} : {};
  let reply;
  try {
    reply = await fetch(path, {...options, headers: {...headers, ...options.headers}});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (reply.ok) return reply;
  let detail = reply.status === 413 ? "The picture is too large." : "The server answered with status " + reply.status + ".";
  try { detail = (await reply.json()).detail || detail; } catch { /* no JSON: a proxy's own page */ }
  if (reply.status === 401) { $("tokenCard").hidden = false; $("token").focus(); }
  throw new Error(detail);
}
function form(entry, more = {}) {
  const body = new FormData();
  body.append("question", entry.question);
  if (entry.image) body.append("image", entry.image.blob, entry.image.name);
  for (const [name, value] of Object.entries(more)) body.append(name, value);
  return {method: "POST", body};
}

// ---- the picture
function setImage(blob, name) {
  if (!/^image\//.test(blob.type)) return problem("“" + name + "” is no picture. JPEG, PNG, WebP and GIF are read.");
  if (blob.size > ui.limits.max_bytes) return problem("“" + name + "” has " + (blob.size / 1e6).toFixed(1) + " MB; this server takes " + ui.limits.max_bytes / 1e6 + " MB.");
  problem();
  showImage({blob, name: name || "picture", url: URL.createObjectURL(blob)});
}
function showImage(image) {
  ui.image = image;
  $("preview").hidden = !image; $("invite").hidden = Boolean(image);
  if (image) { $("shown").src = image.url; $("shown").alt = "Your picture: " + image.name; } else $("shown").removeAttribute("src");
}
$("file").onchange = () => { const file = $("file").files[0]; if (file) setImage(file, file.name); $("file").value = ""; };
$("remove").onclick = () => { showImage(null); $("file").focus(); };
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, event => {
    if (!event.dataTransfer.types.includes("Files")) return;  // words go into the question as everywhere
    event.preventDefault();                      // a picture that misses the frame must not replace the page
    $("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) setImage(file, file.name);
  });
}
addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(f => f.type.startsWith("image/"));
  // Office programs add a picture of copied words; files have a name as text beside them, but no HTML.
  if (["text/plain", "text/html"].every(type => event.clipboardData.types.includes(type))) return;
  if (file) { event.preventDefault(); setImage(file, "pasted." + file.type.split("/")[1]); }
});

// ---- the camera
let stream = null;
$("webcam").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
$("webcam").onclick = async () => {
  try { stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}}); }
  catch (error) { return problem("The camera cannot be used (" + error.message + ")."); }
  $("video").srcObject = stream;
  $("camera").showModal();
};
$("camera").onclose = () => { if (stream) stream.getTracks().forEach(track => track.stop()); stream = null; };
$("noSnap").onclick = () => $("camera").close();
$("snap").onclick = () => {
  const video = $("video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  if (!canvas.width) return;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(blob => { setImage(blob, "camera.jpg"); $("camera").close(); $("question").focus(); }, "image/jpeg", .92);
};

// ---- asking
$("ask").onsubmit = event => { event.preventDefault(); search(); };
$("question").onkeydown = event => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); search(); } };
async function search() {
  const question = $("question").value.trim();
  if (!question && !ui.image) { problem("Show a picture or type a question first."); $("question").focus(); return; }
  if (ui.running) ui.running.abort();
  const running = ui.running = new AbortController();
  const entry = {question, image: ui.image, k: Number($("k").value), why: new Map()};
  busy(true); problem();
  const begin = performance.now();
  try {
    const reply = await call("search", {...form(entry, {k: entry.k}), signal: running.signal});
    entry.reply = await reply.json();
    entry.ms = performance.now() - begin;
    asked.unshift(entry);
    for (const {image} of asked.splice(KEPT)) {
      if (image && image !== ui.image && !asked.some(e => e.image === image)) URL.revokeObjectURL(image.url);
    }
    show(entry);
    if (narrow.matches) $("speed").scrollIntoView();
  } catch (error) {
    if (error.name !== "AbortError") problem(error.message, search);
  } finally {
    if (ui.running === running) { ui.running = null; busy(false); }
  }
}
function busy(yes) {
  $("go").disabled = yes; $("go").textContent = yes ? "Searching…" : "Search";
  $("found").setAttribute("aria-busy", yes); $("results").classList.toggle("old", yes);
  if (yes) $("state").textContent = "Searching.";
}
function problem(text, again) {
  $("problem").hidden = !text; $("problem").replaceChildren();
  if (!text) return;
  make("div", $("problem"), text);
  if (again) make("button", $("problem"), "Try again").onclick = again;
}

// ---- answers
function show(entry) {
  ui.shown = entry;
  const {results, timings} = entry.reply;
  $("empty").hidden = results.length > 0;
  if (!results.length) { $("empty").replaceChildren(); make("h2", $("empty"), "Nothing found"); make("p", $("empty"), "No passage was a candidate. Try another question or picture."); }
  $("state").textContent = results.length + (results.length === 1 ? " passage" : " passages") + " in " + Math.round(entry.ms) + " milliseconds. Best: " + (results.length ? results[0].title || results[0].id : "none") + ".";
  document.title = (entry.question || "A picture") + " – Searcher";
  speed(entry, timings);
  $("look").hidden = true; $("look").replaceChildren(); aside(); document.querySelector("main").classList.remove("seen");
  ui.look = null;
  $("left").append($("exampleCard"));            // makes room for the answers
  $("results").replaceChildren(...results.map(hit => card(entry, hit)));
  $("call").hidden = false; $("curl").textContent = curl(entry); $("copied").textContent = "";
  past();
  if (results.length) $("results").querySelector(".more").click();
}
function card(entry, hit) {
  const item = make("li", undefined, undefined, "hit card"), title = hit.title || hit.id;
  make("span", item, String(hit.rank), "rank").setAttribute("aria-label", "Rank " + hit.rank);
  const head = make("div", item);
  make("h3", head, title);
  const meta = make("div", head, undefined, "meta");
  make("span", meta, "score " + hit.score.toFixed(3));
  if (hit.title) make("span", meta, hit.id);
  const body = make("div", item, undefined, "body"), text = make("p", body);
  mark(text, hit.text || "(the text of this passage is not here)", entry.question);
  const more = make("button", body, "Why this passage?", "more"), why = make("div", body, undefined, "why");
  more.type = "button"; why.hidden = true; why.id = "why" + hit.rank;
  more.setAttribute("aria-expanded", "false"); more.setAttribute("aria-controls", why.id);
  more.onclick = () => toggle(entry, hit, more, why, text);
  return item;
}
async function toggle(entry, hit, more, why, text) {
  const open = why.hidden;
  why.hidden = !open; text.hidden = open && why.childElementCount > 0;
  more.setAttribute("aria-expanded", String(open)); more.textContent = open ? "Hide the reasons" : "Why this passage?";
  if (open && why.childElementCount) beside(why);
  if (!open || why.childElementCount) return;
  const wait = make("p", why, "Looking for the reasons…", "soft");
  try {
    if (!entry.why.has(hit.id)) entry.why.set(hit.id, call("explain", form(entry, {documents: hit.id})).then(r => r.json()));
    const data = await entry.why.get(hit.id);
    if (entry !== ui.shown) return;
    if (!ui.look) {
      ui.look = Why.look(data, $("look"));
      $("look").hidden = !data.picture;
      document.querySelector("main").classList.toggle("seen", Boolean(data.picture));
      for (const note of data.picture ? data.notes : []) make("p", $("look"), note, "soft");
    }
    wait.remove();
    Why.passage(data, data.passages[0], why, ui.look);
    why.insertBefore(why.querySelector(".passage"), why.firstChild);
    beside(why);
    text.hidden = !why.hidden;
  } catch (error) {
    entry.why.delete(hit.id);
    why.replaceChildren(); why.hidden = true; text.hidden = false;
    more.setAttribute("aria-expanded", "false"); more.textContent = "Why this passage?";
    problem("The reasons could not be had: " + error.message);
  }
}
/* In one column the heat map stands among the reasons opened last, where a finger finds it; else beside them all. */
function beside(why) { if (narrow.matches) why.querySelector(".passage").after($("look")); }
function aside() { document.querySelector("main").append($("look")); }
narrow.onchange = () => { if (!narrow.matches) aside(); };
const PLAIN = new Set("this that these those what which where when with from have does there their they them here will would could should about into over such than then some many much most your".split(" "));
/* Words of the text that begin like a longer word of the question. */
function mark(parent, text, question) {
  const wanted = (question.toLowerCase().match(/[\p{L}\p{N}]{4,}/gu) || []).filter(w => !PLAIN.has(w));
  const alike = word => wanted.some(w => {
    let n = 0;
    while (n < word.length && word[n] === w[n]) n++;
    return n >= Math.max(4, .6 * Math.max(word.length, w.length));
  });
  for (const piece of text.split(/([\p{L}\p{N}]+)/u)) {
    if (piece.length > 3 && alike(piece.toLowerCase())) make("mark", parent, piece); else parent.append(piece);
  }
}
function speed(entry, t) {
  const parts = [["picture", t.decode_ms], ["waiting", t.queue_ms], ["encoding", t.encode_ms], ["searching", t.search_ms],
    ["network", Math.max(0, entry.ms - t.total_ms)]];
  const sum = parts.reduce((s, [, v]) => s + v, 0) || 1;
  $("speed").hidden = false; $("speed").replaceChildren();
  const track = make("div", $("speed"), undefined, "track"), list = make("ul", $("speed"));
  track.setAttribute("aria-hidden", "true");
  make("li", list, Math.round(entry.ms) + " ms");
  parts.forEach(([name, v], i) => {
    make("span", track, undefined, "s" + i).style.width = 100 * v / sum + "%";
    const line = make("li", list);
    make("span", line, undefined, "dot s" + i);
    line.append(name + " " + v.toFixed(v < 10 ? 1 : 0) + " ms");
  });
}

// ---- the call, for a terminal
const quoted = text => "'" + text.replaceAll("'", "'\\''") + "'";
function curl(entry) {
  const lines = ["curl " + quoted(new URL("search", location.href).href)];
  if (ui.token) lines.push("-H \"Authorization: Bearer $SEARCHER_TOKEN\"");
  if (entry.question) lines.push("--form-string " + quoted("question=" + entry.question));
  if (entry.image) lines.push("-F " + quoted("image=@" + entry.image.name.replace(/[;,"\\]/g, "_")));
  lines.push("-F k=" + entry.k);
  return lines.join(" \\\n  ");
}
$("copy").onclick = async () => {
  try { await navigator.clipboard.writeText($("curl").textContent); $("copied").textContent = "Copied."; }
  catch { getSelection().selectAllChildren($("curl")); $("copied").textContent = "Selected: copy it with the keyboard."; }
};

// ---- what was asked before
function past() {
  $("historyCard").hidden = !asked.length;
  $("history").replaceChildren(...asked.map(entry => {
    const item = make("li"), button = make("button", item);
    button.type = "button";
    if (entry.image) { const small = make("img", button); small.src = entry.image.url; small.alt = ""; } else make("span", button, undefined, "none");
    const words = make("span", button, entry.question || "(a picture alone)"), first = entry.reply.results[0];
    make("span", words, first ? first.title || first.id : "nothing found");
    button.setAttribute("aria-current", String(entry === ui.shown));
    button.onclick = () => { $("question").value = entry.question; showImage(entry.image); problem(); show(entry); $("found").focus(); };
    return item;
  }));
}

// ---- what the server has
async function begin() {
  const info = await (await call("info")).json();
  ui.limits = info.limits;
  const number = n => n.toLocaleString("en");
  $("about").textContent = info.model.name + ", " + (info.model.parameters / 1e6).toFixed(0) + " million parameters on " + info.model.device
    + " · " + number(info.index.documents) + " passages" + (info.data ? " of " + info.data : "") + ", " + (info.index.bytes / 1e6).toFixed(0) + " MB " + info.index.format + " index";
  if (!info.model.images) { $("drop").hidden = true; $("hint").textContent = "This model reads text only. Enter asks."; }
  const listed = await (await call("examples")).json();
  $("exampleCard").hidden = !listed.length;
  $("examples").replaceChildren(...listed.map(example));
}
function example({question, image}) {
  const button = make("button"), thumb = image ? make("img", button) : null;
  button.type = "button"; button.title = question;
  make("span", button, question || "a picture alone");
  let blob = null;
  if (image) {
    thumb.alt = "";
    call(image).then(r => r.blob()).then(got => { blob = got; thumb.src = URL.createObjectURL(got); }).catch(() => thumb.remove());
  }
  button.onclick = () => {
    $("question").value = question;
    if (blob) setImage(blob, "example." + blob.type.split("/")[1]); else showImage(null);
    search();
  };
  return button;
}
$("tokenForm").onsubmit = event => {
  event.preventDefault();
  ui.token = String.fromCharCode(...new TextEncoder().encode($("token").value.trim()));  // a header holds bytes
  $("tokenCard").hidden = true; problem();
  begin().catch(error => problem(error.message));
};
begin().catch(error => problem(error.message));
