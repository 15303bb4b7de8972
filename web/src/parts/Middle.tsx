/** A text that is cut in the middle if it is too long, because names often differ at their end. */

import type { JSX } from "preact";

/** Number of characters at the end that stay visible. */
const END = 12;

/** Texts up to this length are cut at their end, if at all. */
const SHORT = 18;

export function Middle({ text, title = true }: { text: string; title?: boolean }): JSX.Element {
  if (text.length <= SHORT) return <bdi class="clip">{text}</bdi>;
  const characters = [...text];
  const end = characters.slice(-END).join("");
  return (
    <span class="middle" {...(title ? { title: text } : {})}>
      <span class="unseen">{text}</span>
      <bdi aria-hidden="true" class="start">
        {characters.slice(0, -END).join("")}
      </bdi>
      <bdi aria-hidden="true" class="end">
        {end}
      </bdi>
    </span>
  );
}
