/** An explanation of a word, which mouse, keyboard and touch can open. */

import type { ComponentChildren, JSX } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { placed } from "./place";

type Properties = {
  /** The word that is explained. */
  children: ComponentChildren;
  /** The explanation: one or two sentences. */
  text: string;
};

export function Info({ children, text }: Properties): JSX.Element {
  const [open, setOpen] = useState(false);
  const button = useRef<HTMLButtonElement>(null);
  const tip = useRef<HTMLSpanElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    if (open && button.current && tip.current) placed(tip.current, button.current.getBoundingClientRect());
  }, [open]);
  return (
    <span class="info" onPointerLeave={() => setOpen(false)}>
      <button
        ref={button}
        type="button"
        class="text"
        aria-describedby={id}
        onClick={() => setOpen(true)}
        onFocus={() => setOpen(true)}
        onBlur={() => setOpen(false)}
        onPointerEnter={(event) => event.pointerType === "mouse" && setOpen(true)}
        onKeyDown={(event) => {
          if (event.key !== "Escape" || !open) return;
          event.stopPropagation();
          setOpen(false);
        }}
      >
        {children}
      </button>
      <span ref={tip} id={id} role="tooltip" class="info-text" hidden={!open}>
        {text}
      </span>
    </span>
  );
}
