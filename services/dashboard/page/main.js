/* The start of the page: which view an address has, and what all views share.
 *
 * Owns history, the focus after a change of view, and the connection to the stream of changes. Must
 * not know what a view shows. A view is a function (main, route, app) that fills `main`, and
 * returns {update(route), onChange(name, data), close()}.
 */

import { openDevices } from "./devices.js";
import { h } from "./dom.js";
import { openList } from "./list.js";
import { follow } from "./live.js";
import { parse, samePlace } from "./route.js";
import { attach } from "./theme.js";
import { openVm } from "./vm.js";

const VIEWS = { list: openList, vm: openVm, devices: openDevices, unknown: openUnknown };

const main = document.getElementById("main");
let route = null;
let view = null;

const app = {
  /** Goes to an address of this page; `replace` leaves no step to go back to. */
  go(address, { replace = false } = {}) {
    if (replace) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
    show();
  },

  /** Names what is shown, in the title of the browser. */
  entitle(title) {
    document.title = `${title} · Porthole`;
  },

  /** Goes to the element that the fragment of the address names, if it is there. */
  aim() {
    const target = location.hash.length > 1 ? document.getElementById(fragment()) : null;
    for (const each of document.querySelectorAll(".aimed")) each.classList.remove("aimed");
    if (!target) return;
    for (let each = target; each; each = each.parentElement) {
      if (each.localName === "details") each.open = true;
    }
    target.classList.add("aimed");
    if (!target.hasAttribute("tabindex")) target.tabIndex = -1;
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "center", inline: "center" });
  },
};

function fragment() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function show() {
  const next = parse(location);
  const isFirst = view === null;
  if (view && samePlace(route, next)) {
    route = next;
    view.update(next);
    return;
  }
  view?.close();
  route = next;
  view = VIEWS[next.view](main, next, app);
  const link = document.getElementById("nav-list");
  if (next.view === "list") link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
  if (!isFirst) {
    scrollTo(0, 0);
    main.querySelector("h1")?.focus({ preventScroll: true });
  }
}

function openUnknown(place, _route, { entitle }) {
  entitle("Not found");
  place.replaceChildren(
    h("h1", { tabindex: "-1" }, "There is no such page"),
    h("p", {}, "The address has a mistake. ", h("a", { href: "/" }, "See all handshakes"), "."),
  );
  return { update() {}, onChange() {}, close() {} };
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  if (link.target || link.hasAttribute("download")) return;
  const url = new URL(link.href);
  const isHere = url.pathname === location.pathname && url.search === location.search;
  if (url.origin !== location.origin || (isHere && url.hash)) return;
  if (url.pathname !== "/" && !url.pathname.startsWith("/vm/")) return;
  event.preventDefault();
  app.go(url.pathname + url.search + url.hash);
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

attach(document.getElementById("theme"));
// The changes come first: one that fell between the first answer and them would not be seen.
await follow(
  (name, data) => view?.onChange(name, data),
  (isLive) => {
    const place = document.getElementById("live");
    const word = isLive ? "Live" : "Not connected";
    place.dataset.state = isLive ? "live" : "waiting";
    const shown = document.getElementById("live-word");
    if (shown.textContent !== word) shown.textContent = word;
  },
);
addEventListener("popstate", show);
addEventListener("hashchange", app.aim);
show();
