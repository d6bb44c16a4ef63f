/* The dashboard's API (docs/dashboard.md), as functions.
 *
 * Owns requests, and what an answer that is none is called. A token is in a cookie, which the
 * browser sends by itself. Must not know the document.
 */

const ROOT = "/api/v1";

/** A request that failed. `status` is 0 when there was no answer. */
export class Failure extends Error {
  constructor(status, reason, message) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

/** Returns a page of rows; `query` is of filters.parameters, `next` of the page before. */
export function listVms(query, next, signal) {
  const all = new URLSearchParams(query);
  if (next) all.set("page", next);
  return get(`/vms?${all}`, signal);
}

/** Returns what is worth choosing in the filters. */
export function filterChoices(signal) {
  return get("/filters", signal);
}

/** Returns one VM with all that is known of its handshake. */
export function vm(id, signal) {
  return get(`/vms/${encodeURIComponent(id)}`, signal);
}

/** Returns all of one span, in the JSON form of OTLP. */
export function span(vmId, traceId, spanId, signal) {
  const parts = [vmId, "spans", traceId, spanId].map(encodeURIComponent);
  return get(`/vms/${parts[0]}/${parts.slice(1).join("/")}`, signal);
}

/** Returns the address of the whole trace as lines of OTLP JSON. */
export function traceAddress(vmId) {
  return `${ROOT}/vms/${encodeURIComponent(vmId)}/trace`;
}

/** Returns the metrics of a VM; `since` in milliseconds since 1970, null: all. */
export function metrics(id, since, signal) {
  const query = new URLSearchParams({ points: "240" });
  if (since !== null) query.set("since", Math.round(since));
  return get(`/vms/${encodeURIComponent(id)}/metrics?${query}`, signal);
}

/** Returns what the dashboard is: where it takes traces, what it keeps. */
export function about(signal) {
  return get("/about", signal);
}

/** Returns the address of the stream of changes. */
export function eventsAddress() {
  return `${ROOT}/events`;
}

async function get(path, signal) {
  let answer;
  try {
    answer = await fetch(`${ROOT}${path}`, { signal, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "UNREACHABLE", "The dashboard does not answer.");
  }
  let body = null;
  try {
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (answer.ok && body !== null) return body;
  const { reason = "", message = "" } = body?.error ?? {};
  throw new Failure(answer.status, reason, message || `The dashboard answered ${answer.status}.`);
}
