/* Attributes in the JSON form of OTLP, as lines of text.
 *
 * Pure. Must not know which attributes there are.
 */

/** Returns [key, text] of each attribute, in the order in which they were recorded. */
export function attributes(pairs) {
  return (pairs ?? []).map(({ key, value }) => [String(key), text(value)]);
}

/** Writes a value of any kind. */
export function text(value) {
  if (value === null || typeof value !== "object") return "(empty)";
  if ("stringValue" in value) return value.stringValue === "" ? '""' : String(value.stringValue);
  if ("boolValue" in value) return String(value.boolValue);
  if ("intValue" in value) return String(value.intValue);
  if ("doubleValue" in value) return String(value.doubleValue);
  if ("bytesValue" in value) return `${value.bytesValue} (base64)`;
  if ("arrayValue" in value) return `[${(value.arrayValue?.values ?? []).map(text).join(", ")}]`;
  if ("kvlistValue" in value) {
    const pairs = attributes(value.kvlistValue?.values);
    return `{${pairs.map(([key, each]) => `${key}: ${each}`).join(", ")}}`;
  }
  return "(empty)";
}
