/* Shows the server's own OpenAPI document. */
"use strict";
function make(name, parent, text, cls) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  if (parent) parent.append(node);
  return node;
}
function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return "list of " + kind(schema.items || {});
  if (schema.format === "binary") return "file";
  return (schema.type || "anything") + (schema.contentEncoding ? ", " + schema.contentEncoding : "");
}
function bounds(schema) {
  const names = {minimum: "at least", maximum: "at most", maxLength: "letters at most", minItems: "items at least", maxItems: "items at most", default: "default"};
  return Object.entries(names).filter(([k]) => schema[k] !== undefined && schema[k] !== null && schema[k] !== "").map(([k, v]) => v + " " + schema[k]).join(", ");
}
function fields(parent, schema) {
  const table = make("table", parent), top = make("tr", make("thead", table)), body = make("tbody", table);
  for (const name of ["field", "is", "means"]) make("th", top, name).scope = "col";
  for (const [name, value] of Object.entries(schema.properties || {})) {
    const line = make("tr", body), needed = (schema.required || []).includes(name);
    make("code", make("td", line), name);
    make("td", line, kind(value) + (needed ? ", required" : ""));
    make("td", line, [value.description, bounds(value)].filter(Boolean).join("; "));
  }
}
(async () => {
  const routes = document.getElementById("routes");
  const reply = await fetch("openapi.json");
  if (!reply.ok) {
    make("p", routes, "The document wants the server's token: curl -H \"Authorization: Bearer $SEARCHER_TOKEN\" " + new URL("openapi.json", location.href), "card");
    return;
  }
  const found = await reply.json();
  for (const [path, methods] of Object.entries(found.paths)) {
    for (const [verb, one] of Object.entries(methods)) {
      const card = make("section", routes, undefined, "card"), title = make("h2", card);
      make("span", title, verb.toUpperCase(), "verb"); title.append(" "); make("code", title, path);
      make("p", card, one.description || one.summary);
      const content = one.requestBody && one.requestBody.content;
      if (content) {
        make("p", card, "Send " + Object.keys(content).join(" or ") + ":", "soft");
        fields(card, Object.values(content)[0].schema);
      }
      const ok = one.responses["200"].content, answer = ok && ok["application/json"] && ok["application/json"].schema;
      const named = answer && answer.$ref && found.components.schemas[kind(answer)];
      if (named) { make("p", card, "Get " + kind(answer) + ":", "soft"); fields(card, named); }
      const others = Object.entries(one.responses).filter(([status]) => status !== "200");
      if (others.length) make("p", card, "Errors, {\"detail\": ...}: " + others.map(([s, r]) => s + " " + r.description).join(" "), "soft");
    }
  }
})();
