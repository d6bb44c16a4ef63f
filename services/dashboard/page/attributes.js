/* Raw attributes, on demand: a table of keys and values as they were recorded. */

import { h } from "./dom.js";
import { attributes } from "./otlp.js";

/** Returns the table of attributes in the JSON form of OTLP; `caption` says whose they are. */
export function attributeTable(caption, pairs) {
  const rows = attributes(pairs);
  if (!rows.length) return h("p", { class: "soft" }, `${caption}: none.`);
  return h("table", { class: "attributes" },
    h("caption", {}, caption),
    h("thead", { class: "unseen" },
      h("tr", {}, h("th", { scope: "col" }, "Key"), h("th", { scope: "col" }, "Value"))),
    h("tbody", {},
      rows.map(([key, value]) => h("tr", {},
        h("th", { scope: "row" }, h("code", {}, key)),
        h("td", {}, h("code", {}, value))))));
}
