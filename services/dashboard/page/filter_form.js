/* The filters of the list: links for the verdict, and fields for the rest.
 *
 * Owns the fields. What is chosen is in the address, so the form shows the address and changes it.
 */

import { filterChoices } from "./api.js";
import { h, sign } from "./dom.js";
import { isAny } from "./filters.js";
import { grouped } from "./format.js";
import { LAST, address } from "./route.js";
import { VERDICTS } from "./words.js";

const TYPING_MS = 300;
const LAST_WORDS = new Map([
  ["15m", "in the last 15 minutes"],
  ["1h", "in the last hour"],
  ["1d", "in the last day"],
  ["7d", "in the last week"],
]);
const BETWEEN = "between";

/** Returns a link for each verdict that some VM has, with their number. */
export function verdictLinks(counts, filters) {
  const total = Object.values(counts).reduce((sum, each) => sum + each, 0);
  const link = (name, words, number) => h("a", {
    href: address({ view: "list", filters: { ...filters, verdict: name } }),
    "aria-current": (filters.verdict ?? "") === name ? "true" : null,
    "data-verdict": name || null,
    title: VERDICTS.get(name)?.says,
  }, words, " ", h("span", { class: "number" }, grouped(number)));
  return [
    link("", "All", total),
    ...[...VERDICTS].filter(([name]) => counts[name] || filters.verdict === name
      || name === "valid" || name === "broken")
      .map(([name, { word, sign: mark }]) => link(name, [sign(mark), word], counts[name] ?? 0)),
  ];
}

/**
 * Makes the form.
 *
 * @param {Object} filters - As in the address.
 * @param {function(Object)} onChange - Gets the filters that have changed.
 * @returns {{element, set: function(Object), learn: function}}
 */
export function filterForm(filters, onChange) {
  const kind = h("select", { id: "filter-kind" });
  const rule = h("select", { id: "filter-rule" });
  const kernels = h("datalist", { id: "kernels" });
  const kernel = h("input", {
    id: "filter-kernel", list: "kernels", placeholder: "begins with", spellcheck: "false",
    autocomplete: "off",
  });
  const vm = h("input", {
    id: "filter-vm", placeholder: "begins with", spellcheck: "false", autocomplete: "off",
  });
  const started = h("select", { id: "filter-started" },
    h("option", { value: "" }, "at any time"),
    [...LAST.keys()].map((key) => h("option", { value: key }, LAST_WORDS.get(key))),
    h("option", { value: BETWEEN }, "between two times"));
  const since = h("input", { id: "filter-since", type: "datetime-local", step: "1" });
  const until = h("input", { id: "filter-until", type: "datetime-local", step: "1" });
  const times = h("div", { class: "fields" },
    field("from", since), field("until, excluded", until));
  const clear = h("a", { href: "/", class: "clear" }, "Clear the filters");
  const element = h("form", {
    class: "filters", role: "search", "aria-label": "Filters",
    on: { submit: (event) => event.preventDefault() },
  },
  field("Kind", kind), field("Kernel", kernel), field("Broken rule", rule), field("VM id", vm),
  field("Started", started), times, clear, kernels);

  kind.addEventListener("change", () => onChange({ kind: kind.value }));
  rule.addEventListener("change", () => onChange({ rule: rule.value }));
  for (const [input, key] of [[kernel, "kernel"], [vm, "vm"]]) {
    let timer = 0;
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => onChange({ [key]: input.value.trim() }), TYPING_MS);
    });
  }
  started.addEventListener("change", () => {
    wantsTimes = started.value === BETWEEN;
    times.hidden = !wantsTimes;
    if (wantsTimes) since.focus();
    else onChange({ last: started.value, since: "", until: "" });
  });
  for (const [input, key] of [[since, "since"], [until, "until"]]) {
    input.addEventListener("change", () => {
      const ms = new Date(input.value).getTime();
      onChange({ last: "", [key]: Number.isFinite(ms) ? String(ms) : "" });
    });
  }

  let choices = { kinds: ["WSL2", "WSLC"], kernels: [], rules: [] };
  let now = filters;
  let wantsTimes = false;

  function set(changed) {
    now = changed;
    fill(kind, "any", choices.kinds.map((each) => [each, each]), now.kind);
    const rules = choices.rules.map((each) => [each.rule, `${each.rule} (${grouped(each.vms)})`]);
    fill(rule, "any, or none", rules, now.rule);
    kernels.replaceChildren(...choices.kernels.map((each) => h("option", { value: each })));
    for (const [input, key] of [[kernel, "kernel"], [vm, "vm"]]) {
      if (document.activeElement !== input) input.value = now[key] ?? "";
    }
    const isBetween = Boolean(now.since || now.until);
    started.value = now.last ?? (isBetween || wantsTimes ? BETWEEN : "");
    times.hidden = started.value !== BETWEEN;
    since.value = local(now.since);
    until.value = local(now.until);
    clear.hidden = !isAny(now);
  }

  set(filters);
  return {
    element,
    set,
    /** Asks the server for the choices. */
    async learn(signal) {
      try {
        choices = await filterChoices(signal);
        set(now);
      } catch {
        // The fields stay without suggestions.
      }
    },
  };
}

function field(label, input) {
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input);
}

function fill(select, anything, options, chosen) {
  const known = options.some(([value]) => value === chosen) || !chosen;
  const all = known ? options : [...options, [chosen, chosen]];
  select.replaceChildren(
    h("option", { value: "" }, anything),
    ...all.map(([value, text]) => h("option", { value }, text)),
  );
  select.value = chosen ?? "";
}

function local(ms) {
  if (!ms) return "";
  const when = new Date(Number(ms));
  return new Date(when.getTime() - when.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}
