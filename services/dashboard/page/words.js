/* The plain words for verdicts, events and comparisons.
 *
 * Pure. A sign stands beside each word, so that neither needs a colour. Must not know the document.
 */

/** The word, the sign and the meaning of each verdict. */
export const VERDICTS = new Map([
  ["valid", { word: "Valid", sign: "✓", says: "No rule is broken." }],
  ["broken", { word: "Broken", sign: "✕", says: "Rules are broken." }],
  ["open", {
    word: "Open",
    sign: "…",
    says: "The trace is still coming: most spans are sent when they end.",
  }],
  ["unstarted", {
    word: "Not started",
    sign: "–",
    says: "The creation of the VM failed before its guest booted, so there is no handshake.",
  }],
  ["unjudged", { word: "Not judged", sign: "?", says: "The checker could not judge this trace." }],
]);

const EVENTS = new Map([
  ["VmCreated", "VM created"],
  ["GuestBooted", "Guest booted"],
  ["GuestKernelInfo", "Guest reported kernel and pool"],
  ["WSLCReadGuestCapabilities", "Capabilities read"],
  ["WSLCApplyGuestCapabilities", "Capabilities applied"],
  ["PoolLatched", "Pool latched"],
  ["PoolNotAsRequested", "Pool is not as requested"],
  ["PoolRefused", "Pool refused"],
  ["MessageSwiotlbKernelUnsupported", "User warned: kernel publishes no pool"],
  ["SwiotlbDeviceHostUnsupported", "User warned: device host takes no token"],
  ["HandshakeVerdict", "Owner judged the handshake"],
  ["AddGuestDevice", "Device added"],
  ["ApertureCreated", "Aperture mapped"],
  ["WindowsEnabled", "Windows instead of an aperture"],
  ["FirstRequestCompleted", "First request completed"],
  ["AdapterLinkChanged", "Link of an adapter changed"],
  ["RemoveGuestDevice", "Device removed"],
  ["NetworkingFallback", "User warned: no networking instead of what was asked for"],
  ["NetworkingConfigured", "Networking configured"],
  ["PortMapped", "Port mapped"],
  ["PortUnmapped", "Port unmapped"],
  ["GuestInitEnded", "Guest init ended by itself"],
  ["VmTerminated", "VM ended"],
]);

/** Returns the verdict in words; one that is not known stands for itself. */
export function verdict(name) {
  return VERDICTS.get(name) ?? { word: name || "Not judged", sign: "?", says: "" };
}

/** Returns what an event means; one that is not known stands for itself. */
export function event(name) {
  return EVENTS.get(name) ?? name;
}

/** Returns what a row of flow.arrange shows: its event, or that its party took no part. */
export function step(row) {
  const name = nameOf(row);
  return name === "" ? "Took no part" : event(name);
}

/** Returns the name of the event of a row of flow.arrange; empty when its party took no part. */
export function nameOf(row) {
  return row.event ? row.event.name : row.missing.event;
}

/** Returns the word for a row of flow.arrange in a sentence: step 3, the missing GuestBooted. */
export function place(row) {
  if (row.event) return `step ${row.number}`;
  return row.missing.event === "" ? "a party without spans" : `the missing ${row.missing.event}`;
}

/** Returns a text with a capital first letter. */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Returns the name of a party as a title; a device keeps the name that it was given. */
export function title(party) {
  return party.kind === "device" ? party.name : capital(party.name);
}
