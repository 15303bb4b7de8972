/** The state of the page: the query string of its address. */

import type { ComponentChildren, JSX } from "preact";
import { savedPage } from "./saved";
import { Store, useStore } from "./store";

export const VIEWS = ["overview", "explore", "runs", "errors", "stages", "status", "run", "compare"] as const;
export type View = (typeof VIEWS)[number];

/** Parameters of the query string; an empty value is the same as a missing one. */
export type Parameters = Record<string, string>;

/** Parameters that stay when another view is opened. */
const COMMON = ["where", "since", "until"];

/** Parameters that need no other responses; a saved page can still change them. */
const LOCAL = new Set(["stage", "tab", "attempt", "colour", "sort", "graph", "chart", "pipeline"]);

function parse(query: string): Parameters {
  return Object.fromEntries([...new URLSearchParams(query)].filter(([, value]) => value !== ""));
}

export const parameters = new Store<Parameters>(parse(savedPage ? savedPage.query : location.search));

if (!savedPage) addEventListener("popstate", () => parameters.set(parse(location.search)));

export function viewOf(state: Parameters): View {
  return VIEWS.find((view) => view === state.view) ?? "overview";
}

function address(state: Parameters): string {
  const query = new URLSearchParams();
  if (state.view) query.set("view", state.view);
  for (const [name, value] of Object.entries(state)) if (value) query.set(name, value);
  return query.size ? `?${query}` : "?view=overview";
}

/** Return the address of another view, with the filter and the time range of this one. */
export function viewAddress(view: View, changes: Parameters = {}): string {
  const state: Parameters = { view };
  for (const name of COMMON) if (parameters.value[name]) state[name] = parameters.value[name];
  return address({ ...state, ...changes });
}

/** Return the address of this view with some parameters changed; an empty value removes one. */
export function changed(changes: Parameters): string {
  return address({ ...parameters.value, ...changes });
}

/** Return whether an address can be opened: in a saved page only those that need no other responses. */
export function isReachable(to: string): boolean {
  if (!savedPage) return true;
  const next = parse(to);
  const names = new Set([...Object.keys(next), ...Object.keys(parameters.value)]);
  return [...names].every((name) => LOCAL.has(name) || (next[name] ?? "") === (parameters.value[name] ?? ""));
}

/** Open an address of this page. */
export function go(to: string, { replace = false }: { replace?: boolean } = {}): void {
  if (!isReachable(to)) return;
  if (!savedPage) {
    if (to === location.search) return;
    if (replace) history.replaceState(null, "", to);
    else history.pushState(null, "", to);
  }
  const before = viewOf(parameters.value);
  parameters.set(parse(to));
  if (viewOf(parameters.value) !== before) scrollTo(0, 0);
}

export function useParameters(): Parameters {
  return useStore(parameters);
}

type LinkProperties = {
  to: string;
  children: ComponentChildren;
  class?: string;
  title?: string | undefined;
  [attribute: `aria-${string}` | `data-${string}`]: string | boolean | undefined;
};

/** A link to an address of this page. */
export function Link({ to, children, ...rest }: LinkProperties): JSX.Element {
  if (!isReachable(to)) {
    return (
      <a {...rest} role="link" aria-disabled="true" title="Not part of this saved page">
        {children}
      </a>
    );
  }
  return (
    <a {...rest} href={to} onClick={(event: MouseEvent) => follow(event, to)}>
      {children}
    </a>
  );
}

function follow(event: MouseEvent, to: string): void {
  const elsewhere = event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey;
  if (elsewhere || event.defaultPrevented) return;
  event.preventDefault();
  go(to);
}
