import assert from "node:assert/strict";
import test from "node:test";

import { attributes, text } from "./otlp.js";
import { rate, scaleEnd, sorted, summed, timesOf, valueAt } from "./series.js";
import { scaleOf } from "./waterfall.js";

function series(name, more = {}) {
  return {
    name, unit: "1", kind: "counter", device_id: "fs0", class: "virtio-fs", tag: "src",
    attributes: {}, points: [[1000, 0], [2000, 10]], ...more,
  };
}

test("a counter is shown as its rate, which survives a restart and a gap", () => {
  assert.deepEqual(rate([[0, 5], [1000, 15], [3000, 4], [4000, null], [5000, 8]]),
    [[1000, 10], [3000, 2], [4000, null], [5000, 2]]);
  assert.deepEqual(rate([[0, 5]]), []);
});

test("differences are added up", () => {
  assert.deepEqual(summed([[1, 5], [2, null], [3, 2]]), [[1, 5], [2, null], [3, 7]]);
  const { groups } = sorted([series("porthole.device.exhaustions", { kind: "delta" })]);
  assert.deepEqual(groups[0].plots[0].lines[0].points, [[1000, 0], [2000, 10]]);
});

test("metrics are grouped by device, and none is hidden", () => {
  const other = series("someone.else");
  const { groups, others } = sorted([
    series("porthole.device.bytes_in"),
    series("porthole.device.exhaustions", { attributes: { "porthole.resource": "windows" } }),
    series("porthole.device.exhaustions", { attributes: { "porthole.resource": "handles" } }),
    series("porthole.pool.slots_used", { device_id: "", points: [[1000, 3]] }),
    other,
  ]);
  assert.deepEqual(groups.map((group) => group.name), ["The VM", "src"]);
  assert.deepEqual(groups[0].plots[0].lines[0].points, [[1000, 6144]]);
  assert.deepEqual(groups[1].plots.map((plot) => plot.title), ["Bytes", "Exhaustions"]);
  assert.deepEqual(groups[1].plots[1].lines.map((line) => [line.label, line.style]),
    [["windows", "solid"], ["handles", "dashed"]]);
  assert.deepEqual(others, [other]);
  assert.deepEqual(timesOf(groups), [1000, 2000]);
});

test("a value is that of the last point before", () => {
  const points = [[1000, 1], [2000, null], [3000, 3]];
  assert.deepEqual([500, 1500, 2500, 9000].map((ms) => valueAt(points, ms)), [null, 1, null, 3]);
});

test("a scale ends at a round number", () => {
  assert.deepEqual([0, 0.3, 7, 10, 1234].map((most) => scaleEnd(most, false)),
    [1, 0.5, 10, 10, 2000]);
  assert.deepEqual([0, 1000, 1024, 1025].map((most) => scaleEnd(most, true)),
    [1, 1024, 1024, 2048]);
});

test("the scale of the waterfall is that of the handshake when a VM lives much longer", () => {
  const span = (start, long, ...events) => ({
    start_us: start, duration_us: long, events: events.map(([name, at]) => ({ name, at_us: at })),
  });
  const spans = [
    span(0, 100, ["VmCreated", 10]),
    span(200, 800, ["FirstRequestCompleted", 1000]),
    span(9e6, 1000, ["VmTerminated", 9000500]),
  ];
  assert.deepEqual(scaleOf(spans, true), { from: 0, to: 9001000 });
  assert.deepEqual(scaleOf(spans, false), { from: 0, to: 1100 });
  assert.deepEqual(scaleOf(spans.slice(0, 2), false), { from: 0, to: 1000 });
  assert.deepEqual(scaleOf([], false), { from: 0, to: 1 });
});

test("an attribute of any kind is a text", () => {
  assert.deepEqual(attributes([{ key: "a", value: { intValue: "9223372036854775807" } }]),
    [["a", "9223372036854775807"]]);
  const nested = { kvlistValue: { values: [{ key: "k", value: { boolValue: false } }] } };
  assert.equal(text({ arrayValue: { values: [{ stringValue: "<b>" }, nested] } }), "[<b>, {k: false}]");
  assert.equal(text({ stringValue: "" }), '""');
  assert.equal(text({ bytesValue: "AAE=" }), "AAE= (base64)");
  assert.equal(text({}), "(empty)");
  assert.equal(text(null), "(empty)");
});
