import assert from "node:assert/strict";
import test from "node:test";

import * as format from "./format.js";

test("a size is exact, in the largest unit of which it is a multiple", () => {
  assert.equal(format.size("67108864"), "64 MiB");
  assert.equal(format.size("67112960"), "65\u202f540 KiB");
  assert.equal(format.size("67108865"), "67\u202f108\u202f865 bytes");
  assert.equal(format.size("1"), "1 byte");
  assert.equal(format.size("0"), "0 bytes");
  assert.equal(format.size("9223372036854775807"), "9\u202f223\u202f372\u202f036\u202f854\u202f775\u202f807 bytes");
  assert.equal(format.size(null), "none");
  assert.equal(format.size("what a guest wrote"), "none");
});

test("an amount of bytes is rounded", () => {
  assert.equal(format.bytes(1536), "1.5 KiB");
  assert.equal(format.bytes(1023), "1023 bytes");
  assert.equal(format.bytes(12.4), "12 bytes");
  assert.equal(format.bytes("2147483648"), "2 GiB");
  assert.equal(format.bytes(NaN), "none");
});

test("a duration has a unit that people can read", () => {
  assert.equal(format.duration(0), "0 µs");
  assert.equal(format.duration(840), "840 µs");
  assert.equal(format.duration(48210), "48.2 ms");
  assert.equal(format.duration(3250), "3.25 ms");
  assert.equal(format.duration(1.2e6), "1.2 s");
  assert.equal(format.duration(250e6), "4 min 10 s");
  assert.equal(format.duration(7.5e9), "2 h 5 min");
  assert.equal(format.duration(-310), "-310 µs");
  assert.equal(format.duration(null), "not known");
});

test("a time ago is coarse, and never in the future", () => {
  const now = 1790000000000;
  assert.equal(format.ago(now + 5000, now), "just now");
  assert.equal(format.ago(now - 59e3, now), "59 s ago");
  assert.equal(format.ago(now - 3600e3, now), "1 h ago");
  assert.equal(format.ago(now - 3 * 86400e3, now), "3 days ago");
  assert.equal(format.ago(null, now), "not known");
});

test("a token names a pool, and nothing else does", () => {
  assert.deepEqual(format.pool("swiotlb=0x38000000,67108864"), {
    base: "0x38000000", size: "67108864",
  });
  for (const token of ["", "swiotlb=38000000,1", "swiotlb=0x1,1 ", "SWIOTLB=0x1,1"]) {
    assert.equal(format.pool(token), null);
  }
});

test("large counts are short", () => {
  assert.equal(format.count(9999), "9999");
  assert.equal(format.count(12345), "12.3 k");
  assert.equal(format.count(2.5e6), "2.5 M");
  assert.equal(format.grouped(9120), "9\u202f120");
  assert.equal(format.several(1, "hop"), "1 hop");
  assert.equal(format.several(2, "hop"), "2 hops");
});
