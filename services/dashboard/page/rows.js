/* The table of handshakes: one row for each VM.
 *
 * Owns the cells of a row, and that a row which changes stays the same element, so that a reader
 * who is in it stays there. Must not know filters or requests.
 */

import { badge } from "./badge.js";
import { h, unseen } from "./dom.js";
import { isBefore } from "./filters.js";
import { ago, duration, pool, several, short, size, time } from "./format.js";
import { address } from "./route.js";

const COLUMNS = ["Verdict", "VM", "Kind", "Kernel", "Pool", "Devices", "Broken rules", "Started"];
const RULES_SHOWN = 2;

/** Makes an empty table: {element, set, put, remove, has, last, size, holdsFocus}. */
export function rowTable() {
  // Explicit roles: on a narrow screen the rows are shown as cards, and stay rows.
  const body = h("tbody", { role: "rowgroup" });
  const element = h("table", { class: "vms", role: "table" },
    h("caption", { class: "unseen" }, "Handshakes, the newest first"),
    h("thead", { role: "rowgroup" },
      h("tr", { role: "row" },
        COLUMNS.map((name) => h("th", { role: "columnheader", scope: "col" }, name)))),
    body);
  const shown = new Map(); // {row, tr} by the id of the VM

  function put(row, { isNews = false } = {}) {
    const known = shown.get(row.vm_id);
    const tr = known?.tr ?? h("tr", { role: "row" });
    if (known) update(tr, row);
    else tr.append(...cells(row));
    tr.dataset.verdict = row.verdict;
    shown.set(row.vm_id, { row, tr });
    if (!known || known.row.started_ms !== row.started_ms) {
      const next = [...body.children].find((each) => each !== tr && isBefore(row, rowOf(each)));
      body.insertBefore(tr, next ?? null);
    }
    tr.vmId = row.vm_id;
    if (isNews) flash(tr);
  }

  function rowOf(tr) {
    return shown.get(tr.vmId).row;
  }

  return {
    element,
    set(rows, { keep = false } = {}) {
      const ids = new Set(rows.map((row) => row.vm_id));
      for (const id of [...shown.keys()]) if (!keep && !ids.has(id)) this.remove(id);
      for (const row of rows) put(row);
    },
    put,
    remove(id) {
      shown.get(id)?.tr.remove();
      shown.delete(id);
    },
    row: (id) => shown.get(id)?.row ?? null,
    last: () => (body.lastElementChild ? rowOf(body.lastElementChild) : null),
    size: () => shown.size,
    holdsFocus: (id) => shown.get(id)?.tr.contains(document.activeElement) ?? false,
  };
}

/** Has the times of all rows be right now. */
export function refreshTimes(element, nowMs) {
  for (const each of element.querySelectorAll("[data-since]")) {
    each.textContent = ago(Number(each.dataset.since), nowMs);
  }
}

function flash(tr) {
  tr.classList.remove("changed");
  void tr.offsetWidth; // the animation begins anew
  tr.classList.add("changed");
}

function update(tr, row) {
  const fresh = cells(row);
  [...tr.children].forEach((cell, place) => {
    // The cell with the link stays, and with it the focus.
    if (COLUMNS[place] !== "VM") cell.replaceWith(fresh[place]);
  });
}

function cells(row) {
  const cell = (place, ...content) => h("td", {
    role: "cell", "data-column": COLUMNS[place],
  }, ...content);
  return [
    cell(0, badge(row.verdict)),
    h("th", { role: "rowheader", scope: "row", "data-column": COLUMNS[1] },
      h("a", { href: address({ view: "vm", id: row.vm_id }), title: row.vm_id },
        h("code", {}, short(row.vm_id)))),
    cell(2, row.kind || unknown()),
    cell(3, row.kernel ? h("span", { class: "kernel" }, row.kernel) : unknown()),
    cell(4, poolOf(row)),
    cell(5, String(row.devices)),
    cell(6, rulesOf(row)),
    cell(7,
      h("time", { datetime: iso(row.started_ms) }, time(row.started_ms)),
      h("span", { class: "soft line" },
        h("span", { "data-since": row.started_ms }, ago(row.started_ms, Date.now())),
        row.ended_ms === null
          ? ""
          : `, ended after ${duration((row.ended_ms - row.started_ms) * 1000)}`)),
  ];
}

function poolOf(row) {
  const named = pool(row.token);
  if (!named) return row.token ? h("code", {}, row.token) : h("span", { class: "soft" }, "none");
  return [
    h("span", {}, size(named.size), " at ", h("code", {}, named.base)),
    row.latched_us !== null
      && h("span", { class: "soft line" }, `latched after ${duration(row.latched_us)}`),
  ];
}

function rulesOf(row) {
  if (row.problem) return h("span", { class: "soft" }, row.problem);
  if (!row.rules.length) return h("span", { class: "soft" }, "none");
  const more = row.rules.length - RULES_SHOWN;
  return [
    row.rules.slice(0, RULES_SHOWN).map((rule) => h("code", { class: "rule" }, rule)),
    more > 0 && h("span", { class: "soft line" }, `and ${several(more, "more rule")}`),
  ];
}

function unknown() {
  return [h("span", { class: "soft", "aria-hidden": "true" }, "–"), unseen("not known")];
}

function iso(ms) {
  return Number.isFinite(ms) ? new Date(ms).toISOString() : "";
}
