/* The list of handshakes: loads it, keeps it up to date, and shows what to do when it is empty.
 *
 * Owns which rows are shown. Must not know how a row looks.
 */

import { about, listVms } from "./api.js";
import { h, sign } from "./dom.js";
import { filterForm, verdictLinks } from "./filter_form.js";
import { isAny, isBefore, parameters, passes } from "./filters.js";
import { several, short } from "./format.js";
import { say } from "./news.js";
import { failed } from "./notices.js";
import { address } from "./route.js";
import { refreshTimes, rowTable } from "./rows.js";
import { waysToSend } from "./send.js";
import { verdict } from "./words.js";

const COUNTS_MS = 2000;
const TIMES_MS = 10000;
const AGAIN_MS = 500;

export function openList(main, route, app) {
  let filters = route.filters;
  let next = null;
  let counts = null;
  let countsTimer = 0;
  let isLoading = false;
  let hasMissed = false; // a change came while the list was loaded: the answer may be older
  let againTimer = 0;
  let request = new AbortController();
  const closed = new AbortController();

  const table = rowTable();
  const summary = h("p", { id: "summary", class: "soft" }, "Loading");
  const verdicts = h("nav", { class: "verdicts", "aria-label": "Filter by verdict" });
  const form = filterForm(filters, (changed) => choose({ ...filters, ...changed }));
  const place = h("div", { id: "vms", class: "scroll", "aria-busy": "true" });
  const more = h("button", { type: "button", hidden: true, on: { click: loadMore } }, "Show more");
  const ways = h("div", {}, waysToSend(null));
  const send = h("details", { id: "send" },
    h("summary", {}, h("h2", {}, "Send a trace")), ways);

  function choose(changed) {
    app.go(address({ view: "list", filters: changed }), { replace: true });
  }

  async function load({ aim = false } = {}) {
    request.abort();
    request = new AbortController();
    const mine = request.signal;
    place.setAttribute("aria-busy", "true");
    isLoading = true;
    hasMissed = false;
    try {
      const answer = await listVms(parameters(filters, Date.now()), null, mine);
      table.set(answer.vms);
      next = answer.next;
      counts = answer.counts;
      show();
      if (aim) app.aim();
    } catch (error) {
      if (error.name === "AbortError") return;
      summary.textContent = "The handshakes could not be loaded.";
      place.replaceChildren(failed(error, () => load()));
    } finally {
      if (!mine.aborted) {
        place.setAttribute("aria-busy", "false");
        isLoading = false;
        if (hasMissed) againTimer = setTimeout(load, AGAIN_MS);
      }
    }
  }

  async function loadMore() {
    const mine = request.signal;
    more.disabled = true;
    try {
      const before = table.last()?.vm_id;
      const answer = await listVms(parameters(filters, Date.now()), next, mine);
      table.set(answer.vms, { keep: true });
      next = answer.next;
      show();
      say(`${several(answer.vms.length, "more handshake", "more handshakes")}.`);
      const links = [...table.element.querySelectorAll("tbody a")];
      links[links.findIndex((link) => link.title === before) + 1]?.focus();
    } catch (error) {
      if (error.name !== "AbortError") more.after(failed(error, loadMore));
    } finally {
      more.disabled = false;
    }
  }

  function show() {
    const total = Object.values(counts).reduce((sum, each) => sum + each, 0);
    const rows = table.size();
    const broken = counts.broken ? `${counts.broken} broken` : "none broken";
    summary.textContent = total === 0
      ? "No trace has come yet."
      : `${several(total, "handshake")}, ${broken}.`
        + (isAny(filters) ? ` ${several(rows, "is", "are")} shown${next ? " so far" : ""}.` : "");
    verdicts.replaceChildren(...verdictLinks(counts, filters));
    verdicts.hidden = total === 0;
    form.element.hidden = total === 0 && !isAny(filters);
    more.hidden = next === null;
    if (total === 0) place.replaceChildren(empty());
    else if (rows === 0) place.replaceChildren(nothingPasses());
    else if (table.element.parentElement !== place) place.replaceChildren(table.element);
    if (total === 0) send.open = true;
  }

  function empty() {
    return h("div", { class: "empty" },
      h("p", { class: "big" }, sign("○"), "Nothing is here yet"),
      h("p", {}, "A handshake appears here as soon as its first span comes, without reloading. "
        + "The ways to send one are below."));
  }

  function nothingPasses() {
    return h("div", { class: "empty" },
      h("p", { class: "big" }, sign("○"), "No handshake passes these filters"),
      h("p", {}, h("a", { href: "/" }, "Clear the filters"), " to see all."));
  }

  function onVm(row) {
    const known = table.row(row.vm_id);
    if (known && known.revision > row.revision) return; // an older state came later
    const last = table.last();
    const isInReach = known || next === null || !last || isBefore(row, last);
    if (passes(row, filters, Date.now())) {
      if (isInReach) table.put(row, { isNews: true });
    } else if (known && !table.holdsFocus(row.vm_id)) {
      table.remove(row.vm_id);
    } else if (known) {
      table.put(row);
    }
    if (!known || known.verdict !== row.verdict) {
      const rules = row.rules.length && row.verdict === "broken" ? `: ${row.rules.join(", ")}` : "";
      say(`VM ${short(row.vm_id)}: ${verdict(row.verdict).word.toLowerCase()}${rules}.`);
    }
    countSoon();
  }

  function countSoon() {
    if (countsTimer) return;
    countsTimer = setTimeout(async () => {
      countsTimer = 0;
      try {
        const query = new URLSearchParams({ limit: "1" });
        counts = (await listVms(query, null, closed.signal)).counts;
        show();
      } catch {
        // The next change counts again.
      }
    }, counts === null || table.size() < 2 ? 0 : COUNTS_MS);
  }

  async function learn() {
    try {
      ways.replaceChildren(waysToSend(await about(closed.signal)));
    } catch {
      // The commands stay those of a dashboard with its defaults.
    }
  }

  app.entitle("Handshakes");
  main.replaceChildren(
    h("div", { class: "title" }, h("h1", { tabindex: "-1" }, "Handshakes"), summary),
    verdicts, form.element, place, more, send,
  );
  const clock = setInterval(() => refreshTimes(place, Date.now()), TIMES_MS);
  load({ aim: true });
  form.learn(closed.signal);
  learn();

  return {
    update(changed) {
      if (address(changed) === address({ view: "list", filters })) return app.aim();
      filters = changed.filters;
      form.set(filters);
      load({ aim: true });
      return undefined;
    },
    onChange(name, data) {
      if (isLoading) hasMissed ||= name === "vm" || name === "gone";
      else if (name === "vm" && counts !== null) onVm(data);
      if (name === "reload") load();
      if (name === "gone" && !isLoading) {
        for (const id of data.vm_ids) table.remove(id);
        countSoon();
      }
    },
    close() {
      clearInterval(clock);
      clearTimeout(countsTimer);
      clearTimeout(againTimer);
      request.abort();
      closed.abort();
    },
  };
}
