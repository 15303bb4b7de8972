/** Positions and tick marks of axes. */

import { zone } from "../settings";

const S = 1000;
const MIN = 60 * S;
const H = 60 * MIN;
const D = 24 * H;
const TIME_STEPS = [
  1,
  2,
  5,
  10,
  20,
  50,
  100,
  200,
  500,
  S,
  2 * S,
  5 * S,
  10 * S,
  15 * S,
  30 * S,
  MIN,
  2 * MIN,
  5 * MIN,
  10 * MIN,
  15 * MIN,
  30 * MIN,
  H,
  2 * H,
  3 * H,
  6 * H,
  12 * H,
  D,
  2 * D,
  7 * D,
  14 * D,
  28 * D,
  91 * D,
  365 * D,
];

export type Tick = { at: number; label: string };

/** Return at most `most` round times between two times, all in milliseconds since the epoch. */
export function timeTicks(from: number, to: number, most: number): Tick[] {
  const step = TIME_STEPS.find((each) => (to - from) / each <= most) ?? 365 * D;
  // Round times in the time zone that the page shows.
  const shift = zone.value === "utc" ? 0 : new Date(from).getTimezoneOffset() * MIN;
  const ticks: Tick[] = [];
  let day = "";
  for (let at = Math.ceil((from - shift) / step) * step + shift; at <= to; at += step) {
    const text = new Date(at - shift).toISOString();
    const date = text.slice(5, 10);
    let label = text.slice(11, 16);
    if (step < S) label = text.slice(17, 23);
    else if (step < MIN) label = text.slice(11, 19);
    else if (step >= D) label = date;
    if (step < D && day !== "" && date !== day) label = date;
    day = date;
    ticks.push({ at, label });
  }
  return ticks;
}

/** Return about `most` round values between two values of a linear axis. */
export function linearTicks(low: number, high: number, most: number): number[] {
  if (!(high > low)) return [low];
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((each) => each * power >= rough) ?? 10) * power;
  const ticks: number[] = [];
  for (let index = Math.ceil(low / step); index * step <= high * (1 + 1e-9); index += 1) {
    ticks.push(Number((index * step).toPrecision(12)));
  }
  return ticks;
}

// 1, 2, 5 ms to 1 min: the usual steps of durations, which are not powers of ten above a second.
const DURATIONS = [60, 120, 300, 600, 1800, 3600, 7200, 18_000, 36_000, 86_400].map((each) => each * 1000);

/** Return the candidates for the ticks of a logarithmic axis, most important first. */
export function logTicks(low: number, high: number, durations: boolean): number[] {
  if (!(low > 0)) return [];
  const found: [number, number][] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const [digit, importance] of [
      [1, 0],
      [5, 2],
      [2, 1],
    ] as const) {
      const value = Number((digit * 10 ** power).toPrecision(3));
      if (!durations || value < 60_000) found.push([value, importance]);
    }
  }
  if (durations) for (const value of DURATIONS) found.push([value, 1]);
  return found
    .filter(([value]) => value >= low && value <= high)
    .sort(([, one], [, other]) => one - other)
    .map(([value]) => value);
}

/** Return where a value is between edges: 0 at the first edge, n at the last one of n intervals. */
export function positionIn(edges: number[], value: number, log: boolean): number {
  const last = edges.length - 1;
  if (last < 1) return 0;
  let low = 0;
  let high = last;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((edges[middle] as number) <= value) low = middle;
    else high = middle;
  }
  const from = edges[low] as number;
  const to = edges[low + 1] as number;
  const share =
    log && from > 0 && value > 0
      ? Math.log(value / from) / Math.log(to / from)
      : (value - from) / (to - from || 1);
  return low + Math.min(Math.max(share, 0), 1);
}
