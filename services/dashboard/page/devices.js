/* The devices of a VM over time: plots of their metrics, all on one scale of time, and one control
 * that shows the values at a time in all of them.
 *
 * Owns what is loaded, and the control. Must not know how a plot is drawn.
 */

import { metrics } from "./api.js";
import { h, refill, sign } from "./dom.js";
import { clock, several, short, time } from "./format.js";
import { failed } from "./notices.js";
import { highest, inUnit, plot } from "./plots.js";
import { sorted, timesOf } from "./series.js";
import { vmTitle } from "./vm_title.js";

const AGAIN_MS = 2000;
const SPANS = [["", "everything"], ["900", "15 minutes"], ["3600", "1 hour"], ["86400", "1 day"]];

export function openDevices(main, { id }, app) {
  let timer = 0;
  let request = new AbortController();
  let plots = [];
  let times = [];
  let pinned = null; // the time that the reader chose; null: the newest
  const span = h("select", { id: "span", on: { change: () => load() } },
    SPANS.map(([value, words]) => h("option", { value }, words)));
  const slider = h("input", { id: "cursor", type: "range", min: "0", max: "0", step: "1" });
  const output = h("output", { for: "cursor" });
  const controls = h("div", { class: "controls", hidden: true },
    h("div", { class: "field" }, h("label", { for: "span" }, "Show the last"), span),
    h("div", { class: "field wide" },
      h("label", { for: "cursor" }, "Values at ", output), slider));
  const body = h("div", { id: "devices", "aria-busy": "true" },
    h("p", { class: "soft" }, "Loading"));

  slider.addEventListener("input", () => {
    const place = Number(slider.value);
    pinned = place === times.length - 1 ? null : times[place];
    point();
  });

  async function load() {
    request.abort();
    request = new AbortController();
    const mine = request.signal;
    try {
      const since = span.value ? Date.now() - Number(span.value) * 1000 : null;
      show(await metrics(id, since, mine));
    } catch (error) {
      if (error.name !== "AbortError") body.replaceChildren(failed(error, load));
    } finally {
      if (!mine.aborted) body.setAttribute("aria-busy", "false");
    }
  }

  function show({ series, series_left_out: leftOut }) {
    const { groups, others } = sorted(series);
    times = timesOf(groups);
    controls.hidden = times.length === 0 && !span.value;
    plots = [];
    if (!groups.length && !others.length) {
      refill(body, nothing(Boolean(span.value)));
      return;
    }
    const mosts = mostOf(groups);
    refill(body,
      groups.map((group, place) => groupOf(group, place, mosts)),
      others.length > 0 && othersOf(others),
      leftOut > 0 && h("p", { class: "soft" }, `${several(leftOut, "more series is",
        "more series are")} not shown.`));
    slider.max = String(Math.max(0, times.length - 1));
    point();
  }

  function groupOf(group, place, mosts) {
    const title = `group-${place}`;
    const made = group.plots.map((each, number) => plot(each, {
      id: `figures-${place}-${number}`,
      from: times[0],
      to: times.at(-1),
      most: mosts.get(`${group.deviceId ? "device" : "vm"} ${each.title}`),
      onPoint(ms) {
        pinned = nearest(ms);
        point();
      },
    }));
    plots.push(...made);
    return h("section", { class: "group", "aria-labelledby": title },
      h("h2", { id: title }, group.name,
        group.deviceId && h("span", { class: "soft" },
          ` ${group.deviceClass} `, h("code", { title: group.deviceId }, short(group.deviceId)))),
      h("div", { class: "plots" }, made.map((each) => each.element)));
  }

  function nearest(ms) {
    return times.reduce((best, each) => (Math.abs(each - ms) < Math.abs(best - ms) ? each : best));
  }

  function point() {
    if (!times.length) return;
    const ms = pinned === null ? times.at(-1) : nearest(pinned);
    slider.value = String(times.indexOf(ms));
    const words = pinned === null ? `${clock(ms)}, the newest` : clock(ms);
    slider.setAttribute("aria-valuetext", words);
    output.textContent = words;
    for (const each of plots) each.point(ms);
  }

  app.entitle(`Devices of VM ${short(id)}`);
  main.replaceChildren(vmTitle(id, "devices"), controls, body);
  load();

  return {
    update() {},
    onChange(name, data) {
      if (name === "reload") load();
      if (name !== "metrics" || data.vm_id !== id || timer) return;
      timer = setTimeout(() => {
        timer = 0;
        load();
      }, AGAIN_MS);
    },
    close() {
      clearTimeout(timer);
      request.abort();
    },
  };
}

/** Returns the highest value of each kind of plot, so that devices can be compared. */
function mostOf(groups) {
  const mosts = new Map();
  for (const group of groups) {
    for (const { title, lines } of group.plots) {
      const key = `${group.deviceId ? "device" : "vm"} ${title}`;
      mosts.set(key, Math.max(mosts.get(key) ?? 0, highest(lines)));
    }
  }
  return mosts;
}

function othersOf(series) {
  return h("details", { id: "others" },
    h("summary", {}, `${several(series.length, "other series", "other series")}`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Other series" },
      h("table", {},
        h("caption", { class: "unseen" }, "Other series"),
        h("thead", {}, h("tr", {}, ["Name", "Device", "Attributes", "Newest value", "At"]
          .map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, series.map((each) => {
          const [ms, value] = each.points.at(-1) ?? [NaN, null];
          return h("tr", {},
            h("th", { scope: "row" }, h("code", { title: each.description }, each.name)),
            h("td", {}, each.tag || each.device_id || "–"),
            h("td", {}, Object.entries(each.attributes ?? {})
              .map(([key, text]) => h("code", { class: "line" }, `${key}=${text}`))),
            h("td", { class: "number" }, each.unit === "By"
              ? inUnit(value, "bytes")
              : [inUnit(value, ""), " ", h("span", { class: "soft" }, each.unit)]),
            h("td", {}, time(ms)));
        })))));
}

function nothing(isNarrowed) {
  return h("div", { class: "empty" },
    h("p", { class: "big" }, sign("○"), "No metrics of this VM are here"),
    h("p", {}, isNarrowed
      ? "None came in this span of time."
      : "Services send them every 10 seconds, and when they end, to the same address as spans. "
        + "They appear here by themselves."));
}
