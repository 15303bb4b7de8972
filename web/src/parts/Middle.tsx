/** A text that is cut in the middle if it is too long, because names often differ at their end. */

import type { JSX } from "preact";

/** Number of characters at the end that stay visible. */
const END = 12;

/** Texts up to this length are cut at their end, if at all. */
const SHORT = 18;

export function Middle({ text, title = true }: { text: string; title?: boolean }): JSX.Element {
  if (text.length <= SHORT) return <bdi class="clip">{text}</bdi>;
  const characters = [...text];
  const start = characters.slice(0, -END);
  const end = characters.slice(-END).join("");
  return (
    <span class="middle" {...(title ? { title: text } : {})}>
      <span class="unseen">{text}</span>
      {/* In little space, the start keeps half of it; 0.8ch is less than the width of most characters. */}
      <bdi aria-hidden="true" class="start" style={{ minWidth: `min(50%, ${0.8 * start.length}ch)` }}>
        {start.join("")}
      </bdi>
      <bdi aria-hidden="true" class="end">
        {end}
      </bdi>
    </span>
  );
}
