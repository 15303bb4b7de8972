/** A button that opens a menu. */

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { go } from "../router";
import { placed } from "./place";

export type Item =
  | { label: string; hint?: string; run: () => void; checked?: boolean; disabled?: boolean }
  | { label: string; hint?: string; to: string }
  | { title: string }
  | "line";

type Properties = {
  label: ComponentChildren;
  /** The accessible name, if the label is not a text. */
  name?: string;
  title?: string;
  items: Item[];
  /** Whether the menu is aligned with the right edge of the button. */
  end?: boolean;
  class?: string;
  /** A form below the items; it receives a function that closes the menu. */
  form?: (close: () => void) => ComponentChildren;
};

export function Menu({
  label,
  name,
  title,
  items,
  end = false,
  class: kind = "",
  form,
}: Properties): JSX.Element {
  const [open, setOpen] = useState(false);
  const root = useRef<HTMLDivElement>(null);
  const list = useRef<HTMLDivElement>(null);

  useLayoutEffect(() => {
    if (!open) return undefined;
    const place = () => {
      const anchor = root.current?.querySelector("button")?.getBoundingClientRect();
      if (list.current && anchor) placed(list.current, anchor, end);
    };
    // The menu stays next to its button while the page scrolls, but not while the menu itself does.
    const scroll = (event: Event) => !list.current?.contains(event.target as Node) && place();
    place();
    addEventListener("scroll", scroll, true);
    addEventListener("resize", place);
    return () => {
      removeEventListener("scroll", scroll, true);
      removeEventListener("resize", place);
    };
  }, [open, end]);

  useEffect(() => {
    if (!open) return undefined;
    const checked = list.current?.querySelector<HTMLElement>("[aria-checked=true]");
    (checked ?? list.current?.querySelector<HTMLElement>("button, a, input"))?.focus({
      preventScroll: true,
    });
    const leave = (event: Event) => !root.current?.contains(event.target as Node) && setOpen(false);
    document.addEventListener("pointerdown", leave);
    return () => document.removeEventListener("pointerdown", leave);
  }, [open]);

  const close = () => {
    setOpen(false);
    root.current?.querySelector("button")?.focus();
  };

  const move = (event: KeyboardEvent) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
      return;
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined || event.target instanceof HTMLInputElement) return;
    event.preventDefault();
    const all = [...(list.current?.querySelectorAll<HTMLElement>("[role^=menuitem]:not(:disabled)") ?? [])];
    const at = all.indexOf(document.activeElement as HTMLElement);
    all[(at + step + all.length) % all.length]?.focus();
  };

  return (
    <div
      class={`menu ${end ? "end" : ""}`}
      ref={root}
      onKeyDown={open ? move : undefined}
      onFocusOut={(event) => {
        const next = event.relatedTarget as Node | null;
        if (open && next && !root.current?.contains(next)) setOpen(false);
      }}
    >
      <button
        type="button"
        class={kind}
        aria-haspopup={form ? "dialog" : "menu"}
        aria-expanded={open}
        aria-label={name}
        title={title}
        onClick={() => setOpen(!open)}
      >
        {label}
      </button>
      {open && (
        <div class="items" ref={list} {...(form ? { role: "dialog", "aria-label": name ?? "Options" } : {})}>
          <div role="menu" aria-label={name ?? (typeof label === "string" ? label : "Menu")}>
            {items.map((item, index) => (
              <MenuItem key={index} item={item} close={close} />
            ))}
          </div>
          {form?.(close)}
        </div>
      )}
    </div>
  );
}

function MenuItem({ item, close }: { item: Item; close: () => void }): JSX.Element {
  if (item === "line") return <hr />;
  if ("title" in item) {
    return (
      <div class="title" role="presentation">
        {item.title}
      </div>
    );
  }
  const inner = (
    <>
      <span>{item.label}</span>
      {item.hint && <span class="muted small">{item.hint}</span>}
    </>
  );
  if ("to" in item) {
    const open = (event: MouseEvent) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      close();
      go(item.to);
    };
    return (
      <a role="menuitem" tabIndex={-1} href={item.to} onClick={open}>
        {inner}
      </a>
    );
  }
  const checkable = item.checked !== undefined;
  return (
    <button
      type="button"
      role={checkable ? "menuitemradio" : "menuitem"}
      {...(checkable ? { "aria-checked": item.checked ? "true" : "false" } : {})}
      disabled={item.disabled}
      tabIndex={-1}
      onClick={() => {
        close();
        item.run();
      }}
    >
      {inner}
    </button>
  );
}
