/* The spans of a VM as a waterfall: a table, with a bar for each span on one scale of time.
 *
 * Owns the scale, and the row below a span that has all of it on demand. Must not know rules.
 */

import { span as fetchSpan } from "./api.js";
import { attributeTable } from "./attributes.js";
import { h, refill, sign, unseen } from "./dom.js";
import { duration, several } from "./format.js";
import { spanElementId } from "./lanes.js";
import { failed } from "./notices.js";

const COLUMNS = ["Span", "Service", "Start", "Duration"];
const TICKS = 4;
const DEEPEST = 12; // deeper spans are not indented further
const SHOWN = 300;

/**
 * Makes the waterfall.
 *
 * @param {string} vmId - The VM.
 * @param {AbortSignal} signal - Ends requests that go on.
 * @returns {{element, set: function(Object[], number)}} `set` takes the spans, and the number of
 *   those that are left out.
 */
export function waterfall(vmId, signal) {
  const element = h("div", { id: "waterfall" });
  const opened = new Map(); // what is shown below a span, by its id
  let spans = [];
  let leftOut = 0;
  let isWhole = false;
  let showsAll = false;

  function show() {
    const scale = scaleOf(spans, isWhole);
    const listed = showsAll ? spans : spans.slice(0, SHOWN);
    const rest = spans.length - listed.length;
    refill(element,
      scales(),
      h("div", {
        class: "scroll", id: "spans", tabindex: "0", role: "region", "aria-label": "Table of spans",
      },
        h("table", { class: "spans" },
          h("caption", { class: "unseen" }, "Spans, each below its parent"),
          h("thead", {}, h("tr", {},
            COLUMNS.map((name) => h("th", { scope: "col" }, name)),
            h("th", { scope: "col", class: "axis" }, unseen("Timeline"), ticks(scale)))),
          h("tbody", {}, listed.flatMap((each) => rowsOf(each, scale))))),
      rest > 0 && h("button", {
        type: "button", id: "all-spans", on: { click: () => { showsAll = true; show(); } },
      }, `Show ${several(rest, "more span")}`),
      leftOut > 0 && h("p", { class: "soft" },
        `${several(leftOut, "more span is", "more spans are")} not listed; the download has all.`));
  }

  function scales() {
    const { from, to } = scaleOf(spans, true);
    const near = scaleOf(spans, false);
    if (near.from === from && near.to === to) return null;
    const choice = (whole, text) => h("label", {},
      h("input", {
        type: "radio", name: "scale", id: `scale-${whole}`, checked: whole === isWhole,
        on: { change: () => { isWhole = whole; show(); } },
      }),
      h("span", {}, text));
    return h("fieldset", { class: "choice" },
      h("legend", {}, "Scale"),
      choice(false, `The handshake (${duration(near.to - near.from)})`),
      choice(true, `The whole life (${duration(to - from)})`));
  }

  function rowsOf(each, scale) {
    const id = spanElementId(each);
    const below = opened.get(each.id);
    const button = h("button", {
      type: "button",
      class: "disclose",
      id: `${id}-button`,
      "aria-expanded": String(Boolean(below)),
      on: { click: () => toggle(each) },
    }, unseen("All of "), each.name || "(no name)");
    const isError = each.status === "error";
    return [
      h("tr", { id, class: isError ? "failed" : null },
        h("th", {
          scope: "row", style: { "--depth": String(Math.min(each.depth, DEEPEST)) },
        },
        button,
        isError && h("span", { class: "error" }, sign("!"), "error", each.status_message
          && `: ${each.status_message}`)),
        h("td", {}, each.service || "–"),
        h("td", { class: "number" }, duration(each.start_us)),
        h("td", { class: "number" }, duration(each.duration_us)),
        h("td", { class: "axis" }, bar(each, scale))),
      below && h("tr", { class: "below" }, h("td", { colspan: COLUMNS.length + 1 }, below)),
    ].filter(Boolean);
  }

  async function toggle(each) {
    if (opened.delete(each.id)) {
      show();
      return;
    }
    const place = h("div", { "aria-live": "polite" }, "Loading");
    opened.set(each.id, place);
    show();
    try {
      const all = await fetchSpan(vmId, each.trace_id, each.span_id, signal);
      place.replaceChildren(...whole(all));
    } catch (error) {
      if (error.name === "AbortError") return;
      place.replaceChildren(failed(error, () => { opened.delete(each.id); toggle(each); }));
    }
  }

  return {
    element,
    set(changed, left) {
      spans = changed;
      leftOut = left;
      show();
    },
  };
}

/**
 * Returns the scale of time: of all spans, or (not `isWhole`) only to the last event that is not
 * about the end of something, where that is much shorter.
 *
 * @returns {{from: number, to: number}} Microseconds, as in the spans.
 */
export function scaleOf(spans, isWhole) {
  if (!spans.length) return { from: 0, to: 1 };
  const from = Math.min(...spans.map((each) => each.start_us));
  const end = Math.max(...spans.map((each) => each.start_us + each.duration_us), from + 1);
  const times = spans.flatMap((each) => each.events)
    .filter(({ name }) => !LATE.has(name))
    .map((event) => event.at_us);
  const near = times.length ? Math.max(...times, from + 1) : end;
  const reach = from + (near - from) * 1.1;
  return { from, to: isWhole || end - from < 4 * (reach - from) ? end : reach };
}

const LATE = new Set(["RemoveGuestDevice", "GuestInitEnded", "HandshakeVerdict", "VmTerminated"]);

function ticks({ from, to }) {
  return h("span", { class: "ticks", "aria-hidden": "true" },
    Array.from({ length: TICKS + 1 }, (_, place) => h("span", {
      style: { "--x": `${(100 * place) / TICKS}%` },
    }, duration(from + ((to - from) * place) / TICKS))));
}

function bar({ start_us: start, duration_us: long, status, events }, { from, to }) {
  const percent = (us) => Math.min(100, Math.max(0, (100 * (us - from)) / (to - from)));
  const left = percent(start);
  return h("span", { class: "track", "aria-hidden": "true" },
    start <= to && h("span", {
      class: `bar ${status === "error" ? "error" : ""} ${start + long > to ? "cut" : ""}`,
      style: { "--x": `${left}%`, "--w": `${percent(start + long) - left}%` },
    }),
    events.filter((event) => event.at_us <= to).map((event) => h("span", {
      class: "tick", title: event.name, style: { "--x": `${percent(event.at_us)}%` },
    })));
}

function whole({ resource, scope, span }) {
  return [
    attributeTable("Attributes", span.attributes),
    ...(span.events ?? []).map((event) => attributeTable(`Event ${event.name}`, event.attributes)),
    ...(span.links ?? []).map((link) => attributeTable(
      `Link to span ${link.spanId} of trace ${link.traceId}`, link.attributes,
    )),
    attributeTable("Resource", resource?.attributes),
    h("p", { class: "soft" }, `Trace ${span.traceId}, span ${span.spanId}`,
      span.parentSpanId ? `, parent ${span.parentSpanId}` : "",
      `, scope ${scope?.name ?? "none"}.`),
  ];
}
