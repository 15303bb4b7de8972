/** Time ranges of the address: relative such as `2h`, or absolute. */

const UNITS: Record<string, number> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };

export const PRESETS: [string, string][] = [
  ["15m", "Last 15 minutes"],
  ["1h", "Last hour"],
  ["6h", "Last 6 hours"],
  ["24h", "Last 24 hours"],
  ["7d", "Last 7 days"],
  ["30d", "Last 30 days"],
  ["", "All time"],
];

/** Return the number of milliseconds of a relative time such as `1h30m`; null for any other text. */
export function relativeMs(text: string): number | null {
  if (!/^(\d+[smhdw])+$/.test(text)) return null;
  let total = 0;
  for (const [, amount, unit] of text.matchAll(/(\d+)([smhdw])/g))
    total += Number(amount) * (UNITS[unit ?? ""] ?? 0);
  return total;
}

/** Return an absolute time for a relative one; other texts stay as they are. */
export function absolute(text: string | undefined, now = Date.now()): string {
  if (!text) return "";
  const ms = relativeMs(text);
  return ms === null ? text : new Date(now - ms).toISOString();
}

/** Return the parameters of an address with absolute instead of relative times. */
export function frozen(parameters: Record<string, string>, now = Date.now()): Record<string, string> {
  const { since, until } = parameters;
  const relative = [since, until].some((each) => each && relativeMs(each) !== null);
  return {
    ...parameters,
    ...(since ? { since: absolute(since, now) } : {}),
    ...(until ? { until: absolute(until, now) } : relative ? { until: new Date(now).toISOString() } : {}),
  };
}
