/* The filters of the list: what they ask of the server, and whether a row passes them.
 *
 * Pure. A row that changes is judged here, without asking the server again; the rules are those of
 * GET /vms (docs/dashboard.md). Must not know the document.
 */

import { LAST } from "./route.js";

/** Returns the parameters of GET /vms. */
export function parameters(filters, nowMs) {
  const query = new URLSearchParams();
  for (const key of ["verdict", "kind", "kernel", "rule", "vm"]) {
    if (filters[key]) query.set(key, filters[key]);
  }
  const { since, until } = times(filters, nowMs);
  if (since !== null) query.set("since", since);
  if (until !== null) query.set("until", until);
  return query;
}

/** Returns whether a row passes the filters. */
export function passes(row, filters, nowMs) {
  if (filters.verdict && !filters.verdict.split(",").includes(row.verdict)) return false;
  if (filters.kind && row.kind !== filters.kind) return false;
  if (filters.kernel && !row.kernel.startsWith(filters.kernel)) return false;
  if (filters.rule && !row.rules.includes(filters.rule)) return false;
  if (filters.vm && !row.vm_id.startsWith(filters.vm)) return false;
  const { since, until } = times(filters, nowMs);
  return (since === null || row.started_ms >= since) && (until === null || row.started_ms < until);
}

/** Returns whether one row stands before another in the list: the newest is first. */
export function isBefore(one, other) {
  if (one.started_ms !== other.started_ms) return one.started_ms > other.started_ms;
  return one.vm_id > other.vm_id;
}

/** Returns whether any filter is set. */
export function isAny(filters) {
  return Object.values(filters).some(Boolean);
}

function times(filters, nowMs) {
  if (filters.last) return { since: nowMs - LAST.get(filters.last) * 1000, until: null };
  const number = (text) => (text ? Number(text) : null);
  return { since: number(filters.since), until: number(filters.until) };
}
