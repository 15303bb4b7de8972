/** A short message at the bottom of the page, also announced to screen readers. */

import type { JSX } from "preact";
import { Store, useStore } from "../store";

const message = new Store<string>("");
let timer = 0;

export function announce(text: string): void {
  clearTimeout(timer);
  message.set(text);
  timer = window.setTimeout(() => message.set(""), 2500);
}

export function Toast(): JSX.Element {
  const text = useStore(message);
  return (
    <div class="toast" role="status" aria-live="polite">
      {text}
    </div>
  );
}
