import assert from "node:assert/strict";
import test from "node:test";

import { arrange, foremost, rowId } from "./flow.js";

const parties = ["owner", "guest-kernel", "guest-init", "device-host", "device:fs0"]
  .map((id) => ({ id, name: id, kind: id }));

function event(index, name, { party = "owner", device = "", hop = null, broken = [] } = {}) {
  return { index, name, party, device_id: device, hop, broken, at_us: index };
}

function hop(before, same) {
  return { base: "0x1000", size: "4096", token: null, compared_with: before, same };
}

const same = { base: true, size: true, token: null };
const life = (events, violations = []) => ({ parties, events, violations, rules: [] });
const events = () => [
  event(0, "VmCreated", { hop: hop(null, { base: null, size: null, token: null }) }),
  event(1, "GuestBooted"),
  event(2, "GuestKernelInfo", { party: "guest-kernel", hop: hop(0, same) }),
  event(3, "PoolLatched", { hop: hop(2, same) }),
  event(4, "AddGuestDevice", { device: "fs0", hop: hop(3, same) }),
  event(5, "ApertureCreated", {
    party: "device:fs0", device: "fs0", hop: hop(4, { base: false, size: true, token: null }),
    broken: [0],
  }),
  event(6, "RemoveGuestDevice", { device: "fs0" }),
  event(7, "VmTerminated"),
];
const violation = (index, more = {}) => ({
  index, rule: "R", detail: "d", events: [], spans: [], missing: [], ...more,
});

test("each event is a row in the lane of its party, with its joint to the hop before", () => {
  const { rows } = arrange(life(events(), [violation(0, { events: [5] })]));
  assert.deepEqual(rows.map((row) => row.number), [1, 2, 3, 4, 5, 6, 7, 8]);
  assert.deepEqual(rows.map((row) => row.lane), [0, 0, 1, 0, 0, 4, 0, 0]);
  assert.deepEqual(rows.map((row) => row.joint), ["", "", "same", "same", "same", "differs", "", ""]);
  assert.equal(rows[5].from, rows[4]);
  assert.equal(rows[0].from, null);
  assert.deepEqual(rows.filter((row) => row.violations.length).map(rowId), ["event-6"]);
});

test("a missing event stands where it would have been", () => {
  const place = (name, device, listed = events()) => {
    const missing = [{ event: name, party: "owner", device_id: device }];
    const { rows } = arrange(life(
      listed.filter((each) => each.name !== name), [violation(0, { missing })],
    ));
    const at = rows.findIndex((row) => row.missing);
    return [rows[at - 1]?.event.name, rows[at + 1]?.event.name];
  };
  assert.deepEqual(place("VmCreated", ""), [undefined, "GuestBooted"]);
  assert.deepEqual(place("GuestBooted", ""), ["VmCreated", "GuestKernelInfo"]);
  assert.deepEqual(place("PoolLatched", ""), ["GuestKernelInfo", "AddGuestDevice"]);
  assert.deepEqual(place("ApertureCreated", "fs0"), ["AddGuestDevice", "RemoveGuestDevice"]);
  assert.deepEqual(place("RemoveGuestDevice", "fs0"), ["ApertureCreated", "VmTerminated"]);
  assert.deepEqual(place("VmTerminated", ""), ["RemoveGuestDevice", undefined]);
});

test("two violations of one missing event share a row", () => {
  const missing = [{ event: "GuestBooted", party: "owner", device_id: "" }];
  const listed = events().filter((each) => each.name !== "GuestBooted");
  const { rows } = arrange(life(listed, [violation(0, { missing }), violation(1, { missing })]));
  const found = rows.filter((row) => row.missing);
  assert.equal(found.length, 1);
  assert.equal(found[0].violations.length, 2);
  assert.equal(rowId(found[0]), "missing-1");
});

test("each missing step has an id of its own, and a party that took no part comes first", () => {
  const missing = [
    { event: "ApertureCreated", party: "device:fs0", device_id: "fs0" },
    { event: "ApertureCreated", party: "device:fs1", device_id: "fs1" },
    { event: "", party: "guest-init", device_id: "" },
  ];
  const { rows } = arrange(life(events(), [violation(0, { missing })]));
  const found = rows.filter((row) => row.missing).map(rowId);
  assert.equal(new Set(found).size, 3);
  assert.equal(rows[0].missing.party, "guest-init");
});

test("of several broken rows the one that is missing is shown, then one that differs", () => {
  const listed = events();
  listed[0].broken = [0];
  const missing = [{ event: "GuestBooted", party: "owner", device_id: "" }];
  assert.equal(rowId(foremost(arrange(life(listed, [violation(0, { missing })])))), "missing-1");
  const whole = violation(3, { spans: ["a/b"] });
  assert.equal(rowId(foremost(arrange(life(listed, [whole, violation(0)])))), "event-6");
  listed[5].broken = [];
  assert.equal(rowId(foremost(arrange(life(listed, [violation(0)])))), "event-1");
  assert.equal(foremost(arrange(life(listed, [whole]))), null);
  assert.equal(foremost(arrange(life([]))), null);
});

test("a trace with nothing in it, and parties and hops that are not known, are arranged", () => {
  assert.deepEqual(arrange(life([])).rows, []);
  const odd = event(0, "Unheard", { party: "nobody", hop: hop(99, same), broken: [7] });
  const [row] = arrange(life([odd])).rows;
  assert.equal(row.lane, 0);
  assert.equal(row.from, null);
  assert.deepEqual(row.violations, []);
});
