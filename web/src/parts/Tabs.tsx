/** Tabs: the arrow keys move between them. */

import type { JSX } from "preact";

type Properties = {
  label: string;
  tabs: [id: string, label: string][];
  selected: string;
  onSelect: (id: string) => void;
};

export function Tabs({ label, tabs, selected, onSelect }: Properties): JSX.Element {
  const press = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const at = tabs.findIndex(([id]) => id === selected);
    const next = tabs[(at + step + tabs.length) % tabs.length];
    if (!next) return;
    onSelect(next[0]);
    const bar = event.currentTarget as HTMLElement;
    requestAnimationFrame(() => bar.querySelector<HTMLElement>("[aria-selected=true]")?.focus());
  };
  return (
    <div class="tabs" role="tablist" aria-label={label} onKeyDown={press}>
      {tabs.map(([id, text]) => (
        <button
          type="button"
          key={id}
          role="tab"
          id={`tab-${id}`}
          aria-controls="tab-panel"
          aria-selected={id === selected}
          tabIndex={id === selected ? 0 : -1}
          onClick={() => onSelect(id)}
        >
          {text}
        </button>
      ))}
    </div>
  );
}
