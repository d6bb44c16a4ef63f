/* One handshake: the verdict, the lanes, the rules, the spans.
 *
 * Owns what is loaded and when it is loaded again. Must not know how a part looks.
 */

import { traceAddress, vm as fetchVm } from "./api.js";
import { badge } from "./badge.js";
import { h, outside, refill, sign } from "./dom.js";
import { arrange, foremost, rowId } from "./flow.js";
import { bytes, duration, pool, several, short, size, time } from "./format.js";
import { chain, lanesOf, outline } from "./lanes.js";
import { say } from "./news.js";
import { failed } from "./notices.js";
import { text as valueText } from "./otlp.js";
import { address } from "./route.js";
import { places, rulesOf } from "./rules.js";
import { vmTitle } from "./vm_title.js";
import { waterfall } from "./waterfall.js";
import { capital, place, verdict } from "./words.js";

const AGAIN_MS = 1000;
const VIOLATIONS_SHOWN = 5;

export function openVm(main, route, app) {
  const { id } = route;
  let life = route.life;
  let known = null; // the last answer
  let timer = 0;
  let request = new AbortController();
  const closed = new AbortController();
  const spans = waterfall(id, closed.signal);
  const body = h("div", { id: "vm", "aria-busy": "true" }, h("p", { class: "soft" }, "Loading"));

  async function load({ aim = false } = {}) {
    request.abort();
    request = new AbortController();
    const mine = request.signal;
    try {
      const answer = await fetchVm(id, mine);
      const isFirst = known === null;
      if (!isFirst && known.vm.verdict !== answer.vm.verdict) {
        say(`This handshake: ${verdict(answer.vm.verdict).word.toLowerCase()}.`);
      }
      known = answer;
      show();
      if (isFirst) showBroken();
      if (aim) app.aim();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (known === null || error.status === 404) {
        body.replaceChildren(error.status === 404 ? unknown() : failed(error, () => load()));
      }
    } finally {
      if (!mine.aborted) body.setAttribute("aria-busy", "false");
    }
  }

  function show() {
    // The verdict on the VM is that of its worst life, which is what a reader comes for.
    const chosen = known.lives[life - 1]
      ?? known.lives.findLast((each) => each.verdict === known.vm.verdict)
      ?? known.lives.at(-1);
    if (!chosen) {
      refill(body, facts(known, null), unjudged(known.vm));
      return;
    }
    const flow = arrange(chosen);
    refill(body,
      livesOf(known.lives, chosen),
      banner(known.vm, chosen, flow),
      facts(known, chosen),
      h("section", { "aria-labelledby": "steps-title" },
        h("h2", { id: "steps-title" }, "The handshake"),
        h("p", { class: "soft" }, outline(flow)),
        chain(flow),
        lanesOf(flow, chosen === known.lives[0] ? 0 : chosen.events[0]?.at_us ?? 0)),
      chosen.rules.length > 0 && h("section", { "aria-labelledby": "rules-title" },
        h("h2", { id: "rules-title" }, "Rules"),
        rulesOf(chosen, flow)),
      h("section", { "aria-labelledby": "spans-title" },
        h("h2", { id: "spans-title" }, "Spans"),
        spans.element));
    spans.set(known.spans, known.spans_left_out);
  }

  function livesOf(lives, chosen) {
    if (lives.length < 2) return null;
    return h("nav", { class: "verdicts", "aria-label": "Lives of this id" },
      lives.map((each, number) => h("a", {
        href: address({ view: "vm", id, life: number + 1 }),
        "aria-current": each === chosen ? "true" : null,
        "data-verdict": each.verdict,
      }, `Life ${number + 1} `, badge(each.verdict), " ", time(each.started_ms))));
  }

  function showBroken() {
    // The lanes may be wider than the window: the broken step is brought into them.
    const lanes = document.getElementById("lanes");
    const id = body.querySelector(".go")?.getAttribute("href").slice(1);
    const card = id ? document.getElementById(id).querySelector(".card") : null;
    if (!card) return;
    const [outer, inner] = [lanes.getBoundingClientRect(), card.getBoundingClientRect()];
    lanes.scrollLeft += inner.left + inner.width / 2 - outer.left - outer.width / 2;
  }

  app.entitle(`VM ${short(id)}`);
  main.replaceChildren(vmTitle(id, "vm"), body);
  load({ aim: true });

  return {
    update(changed) {
      if (changed.life === life) return;
      life = changed.life;
      if (known) show();
    },
    onChange(name, data) {
      if (name === "gone" && data.vm_ids.includes(id)) load();
      if (name === "reload") load();
      if (name !== "vm" || data.vm_id !== id || timer) return;
      timer = setTimeout(() => {
        timer = 0;
        load();
      }, known ? AGAIN_MS : 0);
    },
    close() {
      clearTimeout(timer);
      request.abort();
      closed.abort();
    },
  };
}

function banner({ problem }, life, flow) {
  const { word, sign: mark, says } = verdict(life.verdict);
  const row = foremost(flow);
  const violations = life.violations;
  const isBroken = life.verdict === "broken" || life.verdict === "open";
  const where = row && isBroken
    ? ` at ${place(row)}, in the lane of ${flow.lanes[row.lane].name}`
    : "";
  const one = (each) => h("li", {},
    h("code", { class: "rule" }, each.rule), " ", each.detail, " ", places(each, flow));
  const rest = violations.slice(VIOLATIONS_SHOWN);
  return h("section", {
    class: "banner", "data-verdict": life.verdict, "aria-labelledby": "verdict-title",
  },
  h("h2", { id: "verdict-title" }, sign(mark), word + (life.verdict === "broken" ? where : "")),
  h("p", {}, life.verdict === "unjudged" && problem ? problem : summary(life) || says,
    life.verdict === "open" && where && ` So far something is missing or wrong${where}.`),
  isBroken && violations.length > 0 && h("ul", { class: "violations" },
    violations.slice(0, VIOLATIONS_SHOWN).map(one)),
  isBroken && rest.length > 0 && h("details", { id: "more-violations" },
    h("summary", {}, `and ${rest.length} more`),
    h("ul", { class: "violations" }, rest.map(one))),
  life.violations_left_out > 0 && h("p", { class: "soft" },
    `${several(life.violations_left_out, "more breach is", "more breaches are")} not listed.`),
  isBroken && row && h("p", {},
    h("a", { class: "go", href: `#${rowId(row)}` }, "Go to the broken step")));
}

function summary({ verdict: name, rules }) {
  const broken = rules.filter((rule) => rule.verdict === "broken").length;
  if (name === "valid") return `All ${several(rules.length, "rule")} are kept.`;
  if (name !== "broken") return "";
  return `${broken} of ${several(rules.length, "rule")} ${broken === 1 ? "is" : "are"} broken.`;
}

function facts({ vm: row, links, spans }, life) {
  const created = life?.events.find((event) => event.name === "VmCreated");
  const ram = created?.attributes.find(({ key }) => key === "porthole.vm.ram_bytes");
  const named = pool(row.token);
  const fact = (name, ...content) => h("div", {}, h("dt", {}, name), h("dd", {}, ...content));
  const ids = [...new Set(spans.map((each) => each.trace_id))];
  return h("dl", { class: "facts" },
    fact("Kind", row.kind || "not known"),
    fact("Kernel", row.kernel || "not known"),
    ram && fact("RAM", bytes(valueText(ram.value))),
    fact("Pool", named
      ? [size(named.size), " at ", h("code", {}, named.base)]
      : row.token || "none"),
    row.latched_us !== null && fact("Latched after", duration(row.latched_us)),
    fact("Devices", row.devices),
    fact("Started", time(life?.started_ms ?? row.started_ms)),
    fact("Ended", life?.ended_ms ? time(life.ended_ms) : "not yet, or nobody knows"),
    fact(ids.length > 1 ? "Traces" : "Trace",
      ids.map((each) => h("code", { class: "id" }, each)),
      links.map((link) => h("span", { class: "line" },
        outside(link.url, ids.length > 1
          ? `Open in ${link.name} (${short(link.trace_id)})`
          : `Open in ${link.name}`),
      )),
      h("a", {
        class: "line", href: traceAddress(row.vm_id), download: `${row.vm_id}.jsonl`,
      }, "Download as OTLP JSON")));
}

function unjudged(row) {
  return h("div", { class: "empty" },
    h("p", { class: "big" }, sign("?"), verdict(row.verdict).word),
    h("p", {}, capital(row.problem || verdict(row.verdict).says)));
}

function unknown() {
  return h("div", { class: "empty" },
    h("p", { class: "big" }, sign("○"), "No trace of this VM is here"),
    h("p", {}, "It was removed because of its age, or none has come yet. In that case it appears "
      + "here by itself. ", h("a", { href: "/" }, "See all handshakes"), "."));
}
