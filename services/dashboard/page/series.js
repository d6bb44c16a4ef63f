/* The metrics of a VM, as what the plots show: amounts, and rates of counters.
 *
 * Pure. Owns which metrics stand together in a plot, by the names of Porthole's metrics. A series
 * that no plot has is listed, so that nothing is hidden. Must not know the document.
 */

const SLOT_BYTES = 2048;
const DEVICE = "porthole.device.";

/** What the plots of a device show, in their order. A line is [metric, label, how it is drawn]. */
export const DEVICE_PLOTS = [
  {
    title: "Bytes", unit: "bytes/s", shows: "rate",
    lines: [[`${DEVICE}bytes_in`, "read from the guest", "solid"],
      [`${DEVICE}bytes_out`, "written to the guest", "dashed"]],
  },
  {
    title: "Requests", unit: "/s", shows: "rate",
    lines: [[`${DEVICE}requests`, "completed", "solid"]],
  },
  {
    title: "Refusals", unit: "", shows: "total",
    lines: [[`${DEVICE}translations_refused`, "addresses refused", "solid"],
      [`${DEVICE}frames_dropped`, "frames dropped", "dashed"]],
  },
  {
    title: "Windows", unit: "", shows: "total",
    lines: [[`${DEVICE}windows_mapped`, "mapped", "solid"],
      [`${DEVICE}windows_evicted`, "unmapped for room", "dashed"],
      [`${DEVICE}windows_waited`, "waited for", "dotted"]],
  },
  {
    title: "Pool", unit: "bytes", shows: "amount", times: SLOT_BYTES,
    lines: [[`${DEVICE}highest_slot`, "high-water mark", "solid"],
      [`${DEVICE}pool_slots`, "whole pool", "limit"]],
  },
  {
    title: "Exhaustions", unit: "", shows: "total", by: "porthole.resource",
    lines: [[`${DEVICE}exhaustions`, "episodes", "solid"]],
  },
];

/** What the plots of the VM itself show. */
export const VM_PLOTS = [
  {
    title: "Pool", unit: "bytes", shows: "amount", times: SLOT_BYTES,
    lines: [["porthole.pool.slots_used", "in use", "solid"],
      ["porthole.pool.slots_used_high_water", "high-water mark", "dashed"],
      ["porthole.pool.slots_total", "whole pool", "limit"]],
  },
  {
    title: "Windows", unit: "", shows: "amount",
    lines: [["porthole.vm.windows_used", "in use", "solid"],
      ["porthole.vm.windows_limit", "quota", "limit"]],
  },
];

const STYLES = ["solid", "dashed", "dotted"];

/**
 * Sorts the series of a VM.
 *
 * @param {Object[]} series - As in GET /vms/{vm_id}/metrics (docs/dashboard.md).
 * @returns {{groups: Object[], others: Object[]}} A group is the VM (`deviceId` is empty) or a
 *   device, with its plots: {title, unit, lines: {label, style, points}[]}. A plot without any
 *   points is left out. `others` are the series that no plot has.
 */
export function sorted(series) {
  const groups = new Map([["", { deviceId: "", name: "The VM", deviceClass: "", series: [] }]]);
  for (const each of series) {
    const deviceId = each.device_id ?? "";
    if (!groups.has(deviceId)) {
      groups.set(deviceId, { deviceId, name: "", deviceClass: "", series: [] });
    }
    const group = groups.get(deviceId);
    if (deviceId) {
      group.name ||= each.tag || "";
      group.deviceClass ||= each.class || "";
    }
    group.series.push(each);
  }
  const shown = new Set();
  const all = [...groups.values()].map((group) => ({
    ...group,
    name: group.name || group.deviceId,
    plots: (group.deviceId ? DEVICE_PLOTS : VM_PLOTS)
      .map((plot) => plotOf(plot, group.series, shown))
      .filter((plot) => plot.lines.length),
  }));
  return {
    groups: all.filter((group) => group.plots.length),
    others: series.filter((each) => !shown.has(each)),
  };
}

/** Returns the rate of a counter, per second; after a restart it begins at 0. */
export function rate(points) {
  const found = [];
  let before = null;
  for (const [ms, value] of points) {
    if (value === null) {
      found.push([ms, null]);
      continue;
    }
    if (before !== null && ms > before[0]) {
      const more = value >= before[1] ? value - before[1] : value;
      found.push([ms, (more * 1000) / (ms - before[0])]);
    }
    before = [ms, value];
  }
  return found;
}

/** Returns the sums of what came since the point before. */
export function summed(points) {
  let sum = 0;
  return points.map(([ms, value]) => {
    sum += value ?? 0;
    return [ms, value === null ? null : sum];
  });
}

/** Returns the value of a line at a time: that of the last point before; null: none. */
export function valueAt(points, ms) {
  let found = null;
  for (const [at, value] of points) {
    if (at > ms) break;
    found = value;
  }
  return found;
}

/** Returns every time that some line has, in order. */
export function timesOf(groups) {
  const all = new Set(groups.flatMap((group) => group.plots)
    .flatMap((plot) => plot.lines)
    .flatMap((line) => line.points.map(([ms]) => ms)));
  return [...all].sort((one, other) => one - other);
}

/** Returns the end of a scale from 0 for values up to `highest`: 1, 2 or 5 and zeros, or KiB, … */
export function scaleEnd(highest, isBytes) {
  if (!(highest > 0)) return 1;
  if (isBytes) {
    let end = 1;
    while (end < highest) end *= 2;
    return end;
  }
  const ten = 10 ** Math.floor(Math.log10(highest));
  return [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= highest * 0.999999);
}

function plotOf(plot, series, shown) {
  const lines = plot.lines.flatMap(([name, label, style]) => {
    const found = series.filter((each) => each.name === name);
    for (const each of found) shown.add(each);
    return found.map((each, place) => ({
      label: plot.by && each.attributes?.[plot.by] ? each.attributes[plot.by] : label,
      style: found.length > 1 ? STYLES[place % STYLES.length] : style,
      points: drawn(each, plot),
    }));
  }).filter((line) => line.points.some(([, value]) => value !== null));
  return { title: plot.title, unit: plot.unit, lines };
}

function drawn(series, { shows, times = 1 }) {
  const sums = series.kind === "delta" ? summed(series.points) : series.points;
  const points = shows === "rate" ? rate(sums) : sums;
  return points.map(([ms, value]) => [ms, value === null ? null : value * times]);
}
