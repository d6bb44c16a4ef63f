/* The colours: those of the system, or light, or dark, as the reader chose.
 *
 * Owns the choice and its place in the browser. It runs before the first paint, so that a page in
 * the other colours never flashes. Must not know what the page shows.
 */

const KEY = "porthole.theme";
const CHOICES = new Set(["system", "light", "dark"]);

function stored() {
  try {
    const choice = localStorage.getItem(KEY);
    return CHOICES.has(choice) ? choice : "system";
  } catch {
    return "system"; // the browser keeps nothing for this page
  }
}

function apply(choice) {
  document.documentElement.dataset.theme = choice;
}

/** Has the radio buttons of a form show the choice, and make it. */
export function attach(form) {
  form.elements.theme.value = stored();
  form.addEventListener("change", () => {
    const choice = form.elements.theme.value;
    apply(choice);
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // It lasts as long as the page.
    }
  });
}

apply(stored());
