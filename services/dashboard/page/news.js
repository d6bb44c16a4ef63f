/* What a screen reader says of changes, without being asked.
 *
 * Owns the one live region for them, and that changes which come fast are said as one. Must not
 * know what changed.
 */

const FIRST_MS = 300;
const QUIET_MS = 2500;

let waiting = [];
let timer = 0;

/** Says a sentence soon; of several within a short time the last, and how many there were. */
export function say(sentence) {
  waiting.push(sentence);
  if (!timer) timer = setTimeout(speak, FIRST_MS);
}

function speak() {
  const place = document.getElementById("news");
  const more = waiting.length - 1;
  place.textContent = more ? `${waiting.at(-1)} And ${more} more changes.` : waiting[0];
  waiting = [];
  timer = setTimeout(() => {
    timer = 0;
    if (waiting.length) speak();
  }, QUIET_MS);
}
