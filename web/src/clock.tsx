/** Relative times that stay correct while the page is open. */

import type { JSX } from "preact";
import { ago, shortTime, time, zoneName } from "./format";
import { zone } from "./settings";
import { Store, useStore } from "./store";

export const now = new Store<number>(Date.now());

setInterval(() => !document.hidden && now.set(Date.now()), 5000);
document.addEventListener("visibilitychange", () => !document.hidden && now.set(Date.now()));

/** The time of day, with the date if it is not today; the relative time is its tooltip. */
export function At({ at }: { at: string }): JSX.Element {
  const current = useStore(now);
  useStore(zone);
  return (
    <time dateTime={at} title={`${time(at, "ms")} ${zoneName()}, ${ago(at, Math.max(current, Date.now()))}`}>
      {shortTime(at, "second")}
    </time>
  );
}

/** A relative time, with the absolute time as its tooltip. */
export function Ago({ at }: { at: string | number }): JSX.Element {
  const current = useStore(now);
  useStore(zone);
  const date = new Date(at);
  return (
    <time
      dateTime={Number.isNaN(date.getTime()) ? "" : date.toISOString()}
      title={`${time(at, "ms")} ${zoneName()}`}
    >
      {ago(at, Math.max(current, Date.now()))}
    </time>
  );
}
