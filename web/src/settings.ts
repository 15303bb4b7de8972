/** What a person chose for this browser: colours, time zone, live updates. */

import { Store } from "./store";

export type Theme = "auto" | "light" | "dark";
export type Zone = "local" | "utc";

// A saved page and a strict browser have no local storage; the choice then lasts as long as the page.
function read(name: string): string | null {
  try {
    return localStorage.getItem(`stageflow.${name}`);
  } catch {
    return null;
  }
}

function remember(name: string, value: string): void {
  try {
    localStorage.setItem(`stageflow.${name}`, value);
  } catch {
    // See `read`.
  }
}

const storedTheme = read("theme");

export const theme = new Store<Theme>(
  storedTheme === "light" || storedTheme === "dark" ? storedTheme : "auto",
);
export const zone = new Store<Zone>(read("zone") === "utc" ? "utc" : "local");
export const live = new Store<boolean>(read("live") !== "off");

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now; charts on a canvas draw themselves again when it changes. */
export const dark = new Store<boolean>(isDark());

function isDark(): boolean {
  return theme.value === "dark" || (theme.value === "auto" && prefersDark.matches);
}

function apply(): void {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  dark.set(isDark());
}

apply();
prefersDark.addEventListener("change", apply);
theme.subscribe((value) => {
  remember("theme", value);
  apply();
});
zone.subscribe((value) => remember("zone", value));
live.subscribe((value) => remember("live", value ? "on" : "off"));
