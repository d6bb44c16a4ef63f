/* The rules of the checker and their verdicts: the broken ones with what broke them and where, the
 * kept ones behind a click.
 */

import { h, sign, unseen } from "./dom.js";
import { rowId } from "./flow.js";
import { several } from "./format.js";
import { spanElementId } from "./lanes.js";
import { place } from "./words.js";

/** Returns the tables of rules; `flow` is of flow.arrange. */
export function rulesOf(life, flow) {
  const broken = life.rules.filter((rule) => rule.verdict === "broken");
  const kept = life.rules.filter((rule) => rule.verdict !== "broken");
  const violations = new Map(life.violations.map((each) => [each.index, each]));
  return [
    broken.length > 0 && table("Broken rules", broken, (rule) => rule.violations
      .map((index) => violations.get(index))
      .filter(Boolean)
      .map((violation) => h("p", { class: "breach" },
        violation.detail, " ", places(violation, flow)))),
    h("details", { id: "kept", class: "kept" },
      h("summary", {}, `${several(kept.length, "rule is", "rules are")} kept`),
      table("Kept rules", kept, () => null)),
  ];
}

/** Returns links to the places where a violation shows: steps, missing steps, spans. */
export function places(violation, { rows }) {
  const steps = rows.filter((row) => row.violations.includes(violation));
  const links = steps.map((row) => h("a", { href: `#${rowId(row)}` }, place(row)));
  if (!links.length) {
    links.push(...violation.spans.slice(0, 3).map((id) => {
      const [traceId, spanId] = id.split("/");
      return h("a", { href: `#${spanElementId({ trace_id: traceId, span_id: spanId })}` },
        `span ${spanId}`);
    }));
  }
  if (!links.length) return h("span", { class: "soft" }, "(the whole of the trace)");
  return h("span", { class: "places" }, "See ",
    links.flatMap((link, number) => (number ? [", ", link] : [link])), ".");
}

// Explicit roles: on a narrow screen the cells stand below each other, and stay cells.
function table(caption, rules, below) {
  return h("table", { class: "rules", role: "table" },
    h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" },
      h("tr", { role: "row" }, ["Verdict", "Rule", "What it asks"]
        .map((name) => h("th", { role: "columnheader", scope: "col" }, name)))),
    h("tbody", { role: "rowgroup" }, rules.map((rule) => h("tr", {
      role: "row", "data-verdict": rule.verdict,
    },
    h("td", { role: "cell" },
      rule.verdict === "broken" ? [sign("✕"), "Broken"] : [sign("✓"), "Kept"]),
    h("th", { role: "rowheader", scope: "row" },
      h("code", { class: "rule" }, rule.rule),
      h("span", { class: "soft line" }, h("span", { "aria-hidden": "true" }, "§ "),
        unseen("section "), rule.section)),
    h("td", { role: "cell" }, rule.says, below(rule))))));
}
