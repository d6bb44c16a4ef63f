/* How to send a trace: commands to copy, with the addresses at which this dashboard listens.
 *
 * Owns these commands. Must not know the list of handshakes.
 */

import { h, unseen } from "./dom.js";
import { say } from "./news.js";

const GRPC = "127.0.0.1:4317";
const HTTP = "http://127.0.0.1:4318";

/** Returns the ways to send a trace; `about` is of GET /about, or null while it is not known. */
export function waysToSend(about) {
  const grpc = about?.otlp?.grpc?.[0] ?? GRPC;
  const http = (about?.otlp?.http ?? []).find((each) => each.startsWith("http")) ?? HTTP;
  const needsToken = about?.token_needed ?? false;
  const token = needsToken ? ` -H "Authorization: Bearer $TOKEN"` : "";
  return h("div", { class: "ways" },
    way("See one now", "Three VMs are made, used and ended. It takes some seconds and needs no "
      + "other service.", "porthole demo --dashboard"),
    way("From Porthole's services", "Each service sends its spans when they end.",
      `PORTHOLE_OTLP_ENDPOINT=${grpc} porthole up`),
    way("From a file that was recorded", "Each line of a trace file is one request.",
      [
        "while IFS= read -r line; do",
        `  printf %s "$line" | curl -fsS -H 'Content-Type: application/json'${token} \\`,
        `    --data-binary @- ${http}/v1/traces`,
        "done <trace.jsonl",
      ].join("\n")),
    way("From any other exporter", "Every SDK of OpenTelemetry, and the Collector, reads these.",
      [
        `OTEL_EXPORTER_OTLP_ENDPOINT=${http}`,
        "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        ...(needsToken ? ["OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20$TOKEN"] : []),
      ].join("\n")),
    needsToken
      && h("p", { class: "soft" }, "TOKEN is the content of the file that the dashboard was "
        + "started with."));
}

function way(title, says, command) {
  const word = h("span", {}, "Copy");
  const button = h("button", { type: "button", class: "quiet" }, word, unseen(` this: ${title}`));
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      word.textContent = "Copied";
      say("Copied.");
    } catch {
      word.textContent = "Select it by hand"; // the browser allows no access to the clipboard
    }
    setTimeout(() => { word.textContent = "Copy"; }, 2000);
  });
  return h("section", { class: "way" },
    h("h3", {}, title),
    h("p", {}, says),
    h("div", { class: "command" },
      h("pre", { tabindex: "0", role: "group", "aria-label": `Command: ${title}` },
        h("code", {}, command)),
      button));
}
