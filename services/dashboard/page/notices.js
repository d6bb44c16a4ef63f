/* What a view shows when a request failed.
 *
 * Owns the words for it, and the field for a token. Must not know the view.
 */

import { Failure } from "./api.js";
import { h, sign } from "./dom.js";

/** Returns an element that says what failed; `retry` is called to try again. */
export function failed(error, retry) {
  if (error instanceof Failure && error.status === 401) return askForToken();
  const text = error instanceof Failure ? error.message : "The page met an error of its own.";
  if (!(error instanceof Failure)) console.error(error);
  return h("div", { class: "notice", role: "alert" },
    h("p", {}, sign("!"), text),
    h("button", { type: "button", on: { click: retry } }, "Try again"));
}

function askForToken() {
  const field = h("input", {
    id: "token", type: "password", autocomplete: "current-password", required: true,
  });
  const submit = (event) => {
    event.preventDefault();
    // The server takes it into a cookie, and redirects to the page without it.
    location.assign(`/?token=${encodeURIComponent(field.value)}`);
  };
  return h("form", { class: "notice", on: { submit } },
    h("p", { role: "alert" }, sign("!"), "This dashboard needs its token: the content of the file "
      + "that it was started with (--token-file)."),
    h("label", { for: "token" }, "Token"),
    field,
    h("button", { type: "submit" }, "Continue"));
}
