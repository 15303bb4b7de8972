/** The sentence at the top of a view. */

import type { ComponentChildren, JSX } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { useWidth } from "../charts/size";

type Properties = {
  text: string;
  /** Whether the sentence describes earlier parameters, because the new response is still loading. */
  stale?: boolean;
  children?: ComponentChildren;
};

/** A sentence of at most two lines; a button shows the rest of a longer one. */
export function Headline({ text, stale = false, children }: Properties): JSX.Element {
  const frame = useRef<HTMLDivElement>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  const width = useWidth(frame);
  const [all, setAll] = useState(false);
  const [isCut, setCut] = useState(false);
  useLayoutEffect(() => {
    const element = heading.current;
    if (element && !all) setCut(element.scrollHeight > element.clientHeight + 1);
  }, [text, width, all]);
  return (
    <div class="headline" ref={frame} aria-busy={stale}>
      <h1 ref={heading} class={`${stale ? "stale" : ""} ${all ? "" : "two-lines"}`}>
        {text}
      </h1>
      {(isCut || all) && (
        <button type="button" class="text" aria-expanded={all} onClick={() => setAll(!all)}>
          {all ? "Show less" : "Show all"}
        </button>
      )}
      {stale && (
        <span class="muted small loading" role="status">
          Loading…
        </span>
      )}
      {children}
    </div>
  );
}
