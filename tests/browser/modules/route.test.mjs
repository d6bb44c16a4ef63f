import assert from "node:assert/strict";
import test from "node:test";

import { isBefore, parameters, passes } from "./filters.js";
import { address, parse, samePlace } from "./route.js";

const at = (text) => parse(new URL(text, "http://localhost"));

test("each route has an address that leads back to it", () => {
  const routes = [
    { view: "list", filters: {} },
    { view: "list", filters: { verdict: "broken", kernel: "6.18 +&=#", last: "1h" } },
    { view: "vm", id: "4f0c-1", life: 0 },
    { view: "vm", id: "a/b?c#d %", life: 2 },
    { view: "devices", id: "<script>" },
  ];
  for (const route of routes) assert.deepEqual(at(address(route)), route);
});

test("an address that is none is no route, and a filter that is none is left out", () => {
  for (const text of ["/vm", "/vm/a/b", "/vm/a/devices/b", "/other", "/vm/%ff"]) {
    assert.equal(at(text).view, "unknown", text);
  }
  assert.deepEqual(at("/?last=2y&since=soon&colour=red&kind=").filters, {});
  assert.equal(at("/vm/a?life=-1").life, 0);
});

test("a reader who filters stays in the same place", () => {
  assert.ok(samePlace(at("/"), at("/?kind=WSLC")));
  assert.ok(samePlace(at("/vm/a"), at("/vm/a?life=2")));
  assert.ok(!samePlace(at("/vm/a"), at("/vm/b")));
  assert.ok(!samePlace(at("/vm/a"), at("/vm/a/devices")));
  assert.ok(!samePlace(null, at("/")));
});

const row = {
  vm_id: "4f0c", kind: "WSL2", kernel: "6.18.26.3-1", verdict: "broken", rules: ["TOKEN_MISSING"],
  started_ms: 1000,
};

test("a row passes the filters that the server would pass it for", () => {
  for (const filters of [{}, { verdict: "open,broken" }, { kind: "WSL2" }, { kernel: "6.18." },
    { rule: "TOKEN_MISSING" }, { vm: "4f" }, { since: "1000", until: "1001" }, { last: "15m" }]) {
    assert.ok(passes(row, filters, 2000), JSON.stringify(filters));
  }
  for (const filters of [{ verdict: "valid" }, { kind: "WSLC" }, { kernel: "18" }, { vm: "f" },
    { rule: "TOKEN" }, { since: "1001" }, { until: "1000" }]) {
    assert.ok(!passes(row, filters, 2000), JSON.stringify(filters));
  }
  assert.ok(!passes(row, { last: "15m" }, 1000 + 900001));
});

test("what is asked of the server is what is chosen", () => {
  assert.equal(parameters({ verdict: "broken", last: "1h" }, 3600000 + 5).toString(),
    "verdict=broken&since=5");
  assert.equal(parameters({}, 5).toString(), "");
});

test("the newest row is first", () => {
  assert.ok(isBefore({ started_ms: 2, vm_id: "a" }, { started_ms: 1, vm_id: "b" }));
  assert.ok(isBefore({ started_ms: 1, vm_id: "b" }, { started_ms: 1, vm_id: "a" }));
});
