/* Plots of lines over time, as SVG that is made here.
 *
 * Owns how a plot is drawn. Lines differ in how they are dashed, not in colour, and each has its
 * value beside its name. Must not know which metrics there are.
 */

import { details, h, svg, unseen } from "./dom.js";
import { bytes, clock, count } from "./format.js";
import { scaleEnd, valueAt } from "./series.js";

const WIDTH = 320;
const HEIGHT = 96;
const INSET = 3; // room for half a line at the edges

/** Writes a value in the unit of a plot. */
export function inUnit(value, unit) {
  if (value === null) return "–";
  if (unit === "bytes") return bytes(value);
  if (unit === "bytes/s") return `${bytes(value)}/s`;
  return `${count(value)}${unit}`;
}

/** Returns the highest value of the lines. */
export function highest(lines) {
  return lines.reduce((most, line) => line.points.reduce(
    (found, [, value]) => (value !== null && value > found ? value : found), most), 0);
}

/**
 * Makes a plot.
 *
 * @param {{title: string, unit: string, lines: Object[]}} plot - As of series.sorted.
 * @param {{id: string, from: number, to: number, most: number, onPoint: function(number)}} view -
 *   The id for its details; the times in milliseconds; the highest value of its scale; `onPoint`
 *   gets the time at which a pointer is.
 * @returns {{element, point: function(number)}} `point` shows the values at a time.
 */
export function plot({ title, unit, lines }, { id, from, to, most, onPoint }) {
  const end = scaleEnd(most, unit.startsWith("bytes"));
  const x = (ms) => INSET + ((WIDTH - 2 * INSET) * (ms - from)) / Math.max(1, to - from);
  const y = (value) => HEIGHT - INSET - ((HEIGHT - 2 * INSET) * value) / end;
  const cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, x1: x(to), x2: x(to) });
  const values = lines.map(() => h("span", { class: "value" }));
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true",
  },
  [0, 0.5, 1].map((part) => svg("line", {
    class: "grid", x1: 0, x2: WIDTH, y1: y(end * part), y2: y(end * part),
  })),
  lines.map((line) => svg("path", { class: `line ${line.style}`, d: path(line.points, x, y) })),
  cursor);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    onPoint(from + ((event.clientX - box.left) / box.width) * (to - from));
  });
  const element = h("figure", { class: "plot" },
    h("figcaption", {},
      h("span", { class: "name" }, title),
      h("ul", { class: "legend" }, lines.map((line, place) => h("li", {},
        svg("svg", { class: "sample", viewBox: "0 0 24 8", "aria-hidden": "true" },
          svg("path", { class: `line ${line.style}`, d: "M0 4H24" })),
        line.label, " ", values[place])))),
    h("div", { class: "canvas" },
      h("span", { class: "most", "aria-hidden": "true" }, inUnit(end, unit)),
      picture,
      h("p", { class: "times", "aria-hidden": "true" },
        h("span", {}, clock(from)), h("span", {}, clock(to)))),
    figures(id, title, unit, lines));
  return {
    element,
    point(ms) {
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(ms).toFixed(1));
      lines.forEach((line, place) => {
        values[place].textContent = inUnit(valueAt(line.points, ms), unit);
      });
    },
  };
}

function path(points, x, y) {
  let isDown = false;
  return points.map(([ms, value]) => {
    if (value === null) {
      isDown = false;
      return "";
    }
    const place = `${x(ms).toFixed(1)} ${y(value).toFixed(1)}`;
    const drawn = isDown ? `L${place}` : `M${place}h0`; // a single point is a dot
    isDown = true;
    return drawn;
  }).join("");
}

function figures(id, title, unit, lines) {
  return details({ id }, ["Figures", unseen(` of ${title}`)], () => [h("div", {
    class: "scroll", tabindex: "0", role: "group", "aria-label": `Figures of ${title}`,
  }, table(title, unit, lines))]);
}

function table(title, unit, lines) {
  const times = [...new Set(lines.flatMap((line) => line.points.map(([ms]) => ms)))];
  const values = lines.map((line) => new Map(line.points));
  return h("table", {},
    h("caption", { class: "unseen" }, `${title}, the newest first`),
    h("thead", {}, h("tr", {},
      h("th", { scope: "col" }, "Time"),
      lines.map((line) => h("th", { scope: "col" }, line.label)))),
    h("tbody", {}, times.sort((one, other) => other - one).map((ms) => h("tr", {},
      h("th", { scope: "row" }, clock(ms)),
      values.map((each) => h("td", { class: "number" }, inUnit(each.get(ms) ?? null, unit)))))));
}
