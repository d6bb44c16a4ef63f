/* The stream of changes: server-sent events, and the connection to them.
 *
 * Owns when to connect again. A browser does so by itself after a break, and not after an answer
 * that is no stream, for instance when the dashboard has as many readers as it takes. Must not know
 * what is shown.
 */

import { eventsAddress } from "./api.js";

const AGAIN_MS = 5000;
const PATIENCE_MS = 1000;
const NAMES = ["vm", "gone", "metrics", "reload"];

/**
 * Follows the changes for as long as the page lives. The promise that it returns is kept when
 * changes arrive, or when that cannot be waited for: what is read afterwards misses no change.
 *
 * @param {function(string, Object)} onChange - Gets the name of an event and its data. After a
 *   break in which the dashboard was started anew it gets "reload", and so it does when changes
 *   arrive only after the promise was kept.
 * @param {function(boolean)} onState - Whether changes arrive now.
 */
export function follow(onChange, onState) {
  let instance = "";
  let begin;
  let hasBegun = false;
  const begun = new Promise((resolve) => {
    begin = () => {
      hasBegun = true;
      resolve();
    };
  });

  function connect() {
    const source = new EventSource(eventsAddress());
    source.addEventListener("error", () => {
      onState(false);
      begin();
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, AGAIN_MS);
    });
    source.addEventListener("hello", (event) => {
      const now = JSON.parse(event.data).instance;
      if (instance !== now && hasBegun) onChange("reload", {});
      instance = now;
      onState(true);
      begin();
    });
    for (const name of NAMES) {
      source.addEventListener(name, (event) => onChange(name, JSON.parse(event.data)));
    }
  }

  connect();
  setTimeout(begin, PATIENCE_MS);
  return begun;
}
