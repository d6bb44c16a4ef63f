/* The head of the two views of a VM: its id, and the links between them. */

import { h, unseen } from "./dom.js";
import { address } from "./route.js";

const VIEWS = [["vm", "Handshake"], ["devices", "Devices over time"]];

/** Returns the head; `here` is the view that it stands above. */
export function vmTitle(id, here) {
  return h("div", { class: "title" },
    h("p", {}, h("a", { href: "/" }, "All handshakes")),
    h("h1", { tabindex: "-1" },
      here === "devices" && unseen("Devices over time of "), "VM ", h("code", {}, id)),
    h("nav", { class: "tabs", "aria-label": "Views of this VM" },
      VIEWS.map(([view, words]) => h("a", {
        href: address({ view, id }), "aria-current": view === here ? "page" : null,
      }, words))));
}
