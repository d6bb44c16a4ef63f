/* The order of what one handshake shows: a row for each event, in the lane of its party, and a row
 * for each event that should be there and is not.
 *
 * Pure. Owns where a missing event would have been. Must not know the document.
 */

// The usual order of a VM's events (docs/handshake.md). Events of one rank come in any order.
const RANKS = new Map([
  ["VmCreated", 0],
  ["GuestBooted", 1],
  ["GuestKernelInfo", 2],
  ["WSLCReadGuestCapabilities", 2],
  ["WSLCApplyGuestCapabilities", 3],
  ["PoolLatched", 4],
  ["PoolRefused", 4],
  ["PoolNotAsRequested", 5],
  ["MessageSwiotlbKernelUnsupported", 5],
  ["HandshakeVerdict", 5], // and again before the end
  ["AddGuestDevice", 6],
  ["SwiotlbDeviceHostUnsupported", 7],
  ["ApertureCreated", 8],
  ["WindowsEnabled", 8],
  ["FirstRequestCompleted", 9],
  ["NetworkingFallback", 9],
  ["NetworkingConfigured", 9],
  ["AdapterLinkChanged", 9],
  ["PortMapped", 9],
  ["PortUnmapped", 9],
  ["RemoveGuestDevice", 10],
  ["GuestInitEnded", 10],
  ["VmTerminated", 11],
]);
const LAST_RANK = 12;

/**
 * Arranges a life of a VM (GET /vms/{vm_id}, docs/dashboard.md).
 *
 * @returns {{lanes, rows, violations}} Arrays. `lanes` are the parties, `violations` those of the
 *   life. A row has `number` (from 1; null for a missing event), `ghost` (the same of missing
 *   events), `lane` (from 0), `event` or `missing`, `from` (the row of the hop before, or null),
 *   `joint` ("same", "differs", or "" when there is nothing to compare), and its `violations`.
 */
export function arrange(life) {
  const lanes = life.parties;
  const laneOf = new Map(lanes.map((party, lane) => [party.id, lane]));
  const violations = new Map(life.violations.map((each) => [each.index, each]));
  const rowOf = new Map();
  const rows = life.events.map((event, place) => {
    const row = {
      number: place + 1,
      ghost: null,
      lane: laneOf.get(event.party) ?? 0,
      event,
      missing: null,
      from: null,
      joint: joint(event.hop?.same),
      violations: event.broken.map((index) => violations.get(index)).filter(Boolean),
    };
    rowOf.set(event.index, row);
    return row;
  });
  for (const row of rows) {
    const before = row.event.hop?.compared_with;
    if (before !== null && before !== undefined) row.from = rowOf.get(before) ?? null;
  }
  for (const violation of life.violations) {
    for (const missing of violation.missing) add(rows, missing, violation, laneOf);
  }
  return { lanes, rows, violations: life.violations };
}

/**
 * Returns the row that shows best what is broken, or null. Of the first violation that has a place
 * it is the event that is missing, or one whose pool is not that of the hop before, or the first:
 * a rule may be about several events.
 */
export function foremost({ rows, violations }) {
  for (const violation of violations) {
    const about = rows.filter((row) => row.violations.includes(violation));
    const row = about.find((each) => each.missing)
      ?? about.find((each) => each.joint === "differs")
      ?? about[0];
    if (row) return row;
  }
  return null;
}

/** Returns the id of a row's element, which a link can name. */
export function rowId(row) {
  return row.event ? `event-${row.number}` : `missing-${row.ghost}`;
}

function joint(same) {
  const members = same ? Object.values(same) : [];
  if (members.includes(false)) return "differs";
  return members.includes(true) ? "same" : "";
}

function add(rows, missing, violation, laneOf) {
  const known = rows.find((row) => row.missing
    && row.missing.event === missing.event
    && row.missing.party === missing.party
    && row.missing.device_id === missing.device_id);
  if (known) {
    known.violations.push(violation);
    return;
  }
  const row = {
    number: null,
    ghost: rows.filter((each) => each.missing).length + 1,
    lane: laneOf.get(missing.party) ?? 0,
    event: null,
    missing,
    from: null,
    joint: "",
    violations: [violation],
  };
  rows.splice(placeOf(rows, missing), 0, row);
}

function placeOf(rows, missing) {
  if (missing.event === "") return 0; // the party took no part at all
  const rank = RANKS.get(missing.event) ?? LAST_RANK;
  const isInScope = (row) => row.event !== null
    && (!missing.device_id || row.event.device_id === missing.device_id);
  const later = rows.findIndex(
    (row) => isInScope(row) && (RANKS.get(row.event.name) ?? LAST_RANK) > rank,
  );
  if (later >= 0) return later;
  const last = rows.findLastIndex(isInScope);
  return last >= 0 ? last + 1 : rows.length;
}
