/* The address of what is shown: a route and its URL, each made from the other.
 *
 * Pure. Everything that a reader chose is in the address, so it can be sent to somebody else. Must
 * not know the document.
 *
 *   /?verdict=broken&kind=…   the handshakes that pass the filters
 *   /vm/ID?life=2             one handshake; `life` where the id of the VM was used again
 *   /vm/ID/devices            its devices over time
 */

export const FILTERS = ["verdict", "kind", "kernel", "rule", "vm", "last", "since", "until"];

/** The spans of time that `last` may name, and their seconds. */
export const LAST = new Map([["15m", 900], ["1h", 3600], ["1d", 86400], ["7d", 7 * 86400]]);

/**
 * Returns the route of an address.
 *
 * @param {{pathname: string, search: string}} url - For instance `location`.
 * @returns {Object} {view: "list", filters}, {view: "vm", id, life}, {view: "devices", id}, or
 *   {view: "unknown"}. `life` counts from 1; 0: the address names none.
 */
export function parse({ pathname, search }) {
  const query = new URLSearchParams(search);
  const parts = pathname.split("/").filter((part) => part !== "");
  if (parts.length === 0) return { view: "list", filters: filtersOf(query) };
  const id = decoded(parts[1] ?? "");
  if (parts[0] !== "vm" || !id) return { view: "unknown" };
  if (parts.length === 2) {
    const life = Number(query.get("life"));
    return { view: "vm", id, life: Number.isInteger(life) && life > 0 ? life : 0 };
  }
  if (parts.length === 3 && parts[2] === "devices") return { view: "devices", id };
  return { view: "unknown" };
}

/** Returns the address of a route. */
export function address(route) {
  if (route.view === "vm") {
    return `/vm/${encodeURIComponent(route.id)}${route.life ? `?life=${route.life}` : ""}`;
  }
  if (route.view === "devices") return `/vm/${encodeURIComponent(route.id)}/devices`;
  const query = new URLSearchParams();
  for (const key of FILTERS) if (route.filters?.[key]) query.set(key, route.filters[key]);
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

/** Returns whether a reader who goes from one route to another stays in the same place. */
export function samePlace(one, other) {
  return one?.view === other.view && (one.id ?? "") === (other.id ?? "");
}

function filtersOf(query) {
  const filters = {};
  for (const key of FILTERS) {
    const value = query.get(key);
    if (value) filters[key] = value;
  }
  if (filters.last && !LAST.has(filters.last)) delete filters.last;
  for (const key of ["since", "until"]) {
    if (filters[key] && !/^\d{1,15}$/.test(filters[key])) delete filters[key];
  }
  return filters;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}
