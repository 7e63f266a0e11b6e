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
  const names = {minimum: "at least #", maximum: "at most #", maxLength: "at most # letters", minItems: "at least #", maxItems: "at most #", default: "default #"};
  return Object.entries(names).filter(([k]) => schema[k] !== undefined && schema[k] !== null && schema[k] !== "").map(([k, v]) => v.replace("#", schema[k])).join(", ");
}
/* sent: whether clients must send what is required; of an answer everything is there. */
function fields(parent, schema, schemas, sent) {
  const table = make("table", parent), top = make("tr", make("thead", table)), body = make("tbody", table);
  for (const name of ["field", "is", "means"]) make("th", top, name).scope = "col";
  (function rows(one, before) {
    for (const [name, value] of Object.entries(one.properties || {})) {
      const line = make("tr", body), needed = sent && (one.required || []).includes(name);
      const inner = schemas[(value.$ref || (value.items && value.items.$ref) || "").split("/").pop()];
      make("code", make("td", line), before + name);
      make("td", line, kind(value) + (needed ? ", required" : ""));
      make("td", line, [value.description || (inner && inner.description), bounds(value)].filter(Boolean).join("; ").replaceAll("`", ""));
      if (inner) rows(inner, before + name + (value.items ? "[]." : "."));
    }
  })(schema, "");
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
        fields(card, Object.values(content)[0].schema, found.components.schemas, true);
      }
      const ok = one.responses["200"].content, answer = ok && ok["application/json"] && ok["application/json"].schema;
      const shape = answer && (answer.$ref ? answer : answer.items), named = shape && found.components.schemas[kind(shape)];
      if (named) {
        make("p", card, "Get " + kind(answer) + ": " + (named.description || "").replaceAll("`", ""), "soft");
        fields(card, named, found.components.schemas, false);
      }
      const others = Object.entries(one.responses).filter(([status]) => status !== "200");
      if (others.length) make("p", card, "Errors, {\"detail\": ...}: " + others.map(([s, r]) => s + " " + r.description).join(" "), "soft");
    }
  }
})();
