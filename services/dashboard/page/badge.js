/* The verdict on a VM, as a badge: a sign and a word, so that it needs no colour. */

import { h, sign } from "./dom.js";
import { verdict } from "./words.js";

/** Returns the badge of a verdict. */
export function badge(name) {
  const { word, sign: mark } = verdict(name);
  return h("span", { class: "badge", "data-verdict": name }, sign(mark), word);
}
