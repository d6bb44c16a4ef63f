/* The handshake as lanes: a card for each step in the lane of its party, and between the cards
 * whether base, size and token are those of the hop before.
 *
 * Owns how a step looks. A broken one has a flag with a word, a thick edge and a hatched joint, so
 * that it is seen without colours. Must not know which steps are broken, or where a step belongs.
 */

import { attributeTable } from "./attributes.js";
import { details, h, sign, unseen } from "./dom.js";
import { rowId } from "./flow.js";
import { duration, grouped, several, size } from "./format.js";
import { nameOf, step as inWords, title } from "./words.js";

const FIELDS = [["base", "Base"], ["size", "Size"], ["token", "Token"]];
const JOINTS = {
  same: { mark: "=", says: "the same as" },
  differs: { mark: "≠", says: "differs from" },
};

/** Returns the strip of all steps, each a link to its card. */
export function chain({ lanes, rows }) {
  return h("nav", { class: "chain", "aria-label": "Steps" },
    h("ol", {}, rows.map((row) => {
      const isBroken = row.violations.length > 0;
      const words = `${title(lanes[row.lane])}: ${inWords(row)}`;
      return h("li", { class: isBroken ? "broken" : null },
        row.joint && h("span", { class: "joint", "data-joint": row.joint, "aria-hidden": "true" },
          JOINTS[row.joint].mark),
        h("a", { href: `#${rowId(row)}`, title: words },
          isBroken && sign("✕"),
          row.number ?? "missing",
          unseen(`, ${words}${isBroken ? ", broken" : ""}`),
          isBroken && h("span", { class: "name", "aria-hidden": "true" }, nameOf(row))));
    })));
}

/** Returns the lanes with their cards. */
export function lanesOf({ lanes, rows }, originUs) {
  return h("div", {
    class: "lanes",
    id: "lanes",
    tabindex: "0",
    role: "region",
    "aria-label": "Lanes of the parties",
  },
  h("div", { class: "flow", style: { "--lanes": String(lanes.length) } },
    h("ul", { class: "heads", "aria-hidden": "true" }, lanes.map((party) => h("li", {
      "data-kind": party.kind,
      class: rows.some((row) => lanes[row.lane] === party) ? null : "absent",
    }, title(party)))),
    h("ol", { class: "hops" }, rows.map((row) => step(row, lanes, originUs)))));
}

function step(row, lanes, originUs) {
  const isBroken = row.violations.length > 0;
  const id = rowId(row);
  return h("li", {
    id,
    class: ["hop", isBroken && "broken", row.missing && "missing", !row.event?.hop && "plain"]
      .filter(Boolean).join(" "),
    style: placement(row),
  },
  wire(row),
  h("article", { class: "card", "aria-labelledby": `${id}-title` },
    isBroken && h("p", { class: "flag" }, sign("✕"), row.missing ? "Missing here" : "Broken here"),
    heading(row, lanes, id, originUs),
    row.event?.hop && values(row),
    row.violations.map((each) => h("p", { class: "breach" },
      h("code", { class: "rule" }, each.rule), " ", each.detail)),
    row.event && details(
      { id: `${id}-raw`, class: "raw" },
      ["Attributes", unseen(` of step ${row.number}`)],
      () => [
        attributeTable(`Attributes of ${row.event.name}`, row.event.attributes),
        h("p", {},
          h("a", { href: `#${spanElementId(row.event)}` }, "See its span"),
          ` of ${row.event.service || "nobody"}`),
      ],
    )));
}

/** Returns the id of the row of a span in the waterfall. */
export function spanElementId({ trace_id: traceId, span_id: spanId }) {
  return `span-${traceId}-${spanId}`;
}

function heading(row, lanes, id, originUs) {
  return h("header", {},
    h("p", { class: "party" }, title(lanes[row.lane])),
    h("h3", { id: `${id}-title` },
      row.number && h("span", { class: "step" }, unseen("Step "), row.number, unseen(": ")),
      row.missing && unseen("Missing: "),
      h("span", {}, inWords(row))),
    h("p", { class: "soft" },
      h("code", {}, nameOf(row)),
      row.event && ` at ${duration(row.event.at_us - originUs)}`));
}

function values(row) {
  const { hop } = row.event;
  const isNone = isZero(hop.base) && isZero(hop.size);
  const fields = isNone ? [["size", "Pool"], ["token", "Token"]] : FIELDS;
  return h("dl", { class: "values" },
    fields.filter(([key]) => hop[key] !== null).map(([key, label]) => value(key, label, row)),
    hop.own_part && h("div", {},
      h("dt", {}, "Own part"),
      h("dd", {}, h("code", {}, hop.own_part))));
}

function isZero(text) {
  return text !== null && /^(0x)?0+$/.test(text);
}

function value(key, label, row) {
  const { hop } = row.event;
  const same = hop.same?.[key] ?? null;
  const joint = same === null ? null : JOINTS[same ? "same" : "differs"];
  const was = same === false ? row.from?.event.hop?.[key] ?? null : null;
  const isNone = label === "Pool";
  return h("div", { class: same === false ? "differs" : null },
    h("dt", {}, label),
    h("dd", {},
      h("code", {}, isNone ? "none" : written(key, hop[key], same === false)),
      joint && [
        " ",
        h("span", {
          class: "joint", "data-joint": same ? "same" : "differs", "aria-hidden": "true",
        }, joint.mark),
        unseen(` ${joint.says} step ${row.from?.number ?? "before"}`),
      ],
      was !== null && h("span", { class: "was" },
        `step ${row.from.number} has `, h("code", {}, written(key, was, true)))));
}

/** Writes a value; a size that differs has all its digits, so that they can be compared. */
function written(key, text, isExact) {
  if (key === "size") return isExact ? `${grouped(text)} bytes` : size(text);
  return text === "" ? "(empty)" : text;
}

function wire(row) {
  if (row.from === null) return null;
  const side = row.from.lane < row.lane ? "right" : row.from.lane > row.lane ? "left" : "down";
  const { mark, says } = JOINTS[row.joint] ?? { mark: "", says: "" };
  return h("div", { class: `wire ${side}`, "data-joint": row.joint || "none" },
    h("span", { class: "line", "aria-hidden": "true" }),
    mark && h("span", { class: "joint", "data-joint": row.joint, "aria-hidden": "true" }, mark),
    mark && h("span", { class: "narrow soft" }, `${says} step ${row.from.number}`));
}

function placement(row) {
  const from = row.from?.lane ?? row.lane;
  return {
    "--at": String(row.lane + 1),
    "--left": String(Math.min(from, row.lane) + 1),
    "--span": String(Math.abs(from - row.lane) + 1),
  };
}

/** Says how many parties took part, for people who do not see the lanes. */
export function outline({ lanes, rows }) {
  const active = lanes.filter((_, lane) => rows.some((row) => row.lane === lane && row.event));
  return `${several(rows.filter((row) => row.event).length, "step")} of `
    + `${several(active.length, "party", "parties")}: `
    + `${active.map((party) => party.name).join(", ")}.`;
}
