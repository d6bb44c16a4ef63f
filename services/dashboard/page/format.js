/* Writes numbers for people.
 *
 * Pure. Integers may be over 2^53, for a guest may write any of 64 bits: they come as numbers or as
 * text, and are never rounded where they are compared. Must not know the document.
 */

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const GROUP = "\u202f"; // a narrow space, which does not break

/** Returns an integer, from a number or a decimal or hexadecimal text; null: it is none. */
export function integer(value) {
  if (value === null || value === undefined || value === "" || typeof value === "boolean") {
    return null;
  }
  try {
    return BigInt(value);
  } catch {
    return null;
  }
}

/** Writes an amount of bytes in the largest unit that has at most two decimals: 64 MiB. */
export function bytes(value) {
  const number = integer(value) ?? (Number.isFinite(value) ? BigInt(Math.round(value)) : null);
  if (number === null) return "none";
  let unit = 0;
  let divisor = 1n;
  const size = number < 0n ? -number : number;
  while (unit < UNITS.length - 1 && size >= divisor * 1024n) {
    divisor *= 1024n;
    unit += 1;
  }
  if (unit === 0) return `${number} ${size === 1n ? "byte" : "bytes"}`;
  const hundredths = Number((size * 100n) / divisor) / 100;
  return `${number < 0n ? "-" : ""}${hundredths} ${UNITS[unit]}`;
}

/** Writes a size exactly, in the largest unit of which it is a multiple: 64 MiB, 65 540 KiB. */
export function size(value) {
  const number = integer(value);
  if (number === null) return "none";
  let unit = 0;
  let whole = number;
  while (unit < UNITS.length - 1 && whole !== 0n && whole % 1024n === 0n) {
    whole /= 1024n;
    unit += 1;
  }
  return `${grouped(whole)} ${unit === 0 && whole === 1n ? "byte" : UNITS[unit]}`;
}

/**
 * Returns the pool that a token names, or null: `swiotlb=0x38000000,67108864`.
 *
 * @returns {?{base: string, size: string}} As they are in the token.
 */
export function pool(token) {
  const found = /^swiotlb=(0x[0-9a-f]+),(\d+)$/.exec(token);
  return found && { base: found[1], size: found[2] };
}

/** Writes an integer with its digits in groups of three. */
export function grouped(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, GROUP);
}

/** Writes a number with at most one decimal, in thousands, millions or more: 12.3 k. */
export function count(value) {
  for (const [divisor, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (Math.abs(value) >= divisor) {
      const per = letter === "k" ? 1e3 : divisor;
      return `${Math.round((value / per) * 10) / 10} ${letter}`;
    }
  }
  return String(Math.round(value * 10) / 10);
}

/** Writes a duration of microseconds: 840 µs, 3.25 ms, 1.2 s, 4 min 10 s; null: not known. */
export function duration(us) {
  if (!Number.isFinite(us)) return "not known";
  if (us < 0) return `-${duration(-us)}`;
  if (us < 1e3) return `${significant(us)} µs`;
  if (us < 1e6) return `${significant(us / 1e3)} ms`;
  if (us < 60e6) return `${significant(us / 1e6)} s`;
  const seconds = Math.round(us / 1e6);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  const minutes = Math.round(seconds / 60);
  return `${grouped(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}

/** Writes a time in the reader's own zone: 2026-11-28 00:40:07. */
export function time(ms) {
  if (!Number.isFinite(ms)) return "not known";
  const when = new Date(ms);
  const day = [when.getFullYear(), two(when.getMonth() + 1), two(when.getDate())].join("-");
  return `${day} ${clock(ms)}`;
}

/** Writes the time of day: 00:40:07. */
export function clock(ms) {
  const when = new Date(ms);
  return [when.getHours(), when.getMinutes(), when.getSeconds()].map(two).join(":");
}

/** Writes how long ago a time was, coarsely: just now, 5 min ago, 3 h ago, 2 days ago. */
export function ago(ms, nowMs) {
  if (!Number.isFinite(ms)) return "not known";
  const seconds = Math.max(0, (nowMs - ms) / 1000);
  if (seconds < 10) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 2 * 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

/** Writes a count and its noun: 1 hop, 2 hops. */
export function several(number, one, many = `${one}s`) {
  return `${grouped(number)} ${number === 1 ? one : many}`;
}

/** Returns the first part of an id, which people can compare. */
export function short(id) {
  const text = String(id);
  return text.length > 13 ? `${text.slice(0, 8)}…` : text;
}

function significant(value) {
  return value < 10 ? Math.round(value * 100) / 100 : Math.round(value * 10) / 10;
}

function two(part) {
  return String(part).padStart(2, "0");
}
