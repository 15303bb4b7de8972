/** Durations as text, in the same way as `stageflow._quantities.duration`. */

export const NONE = "–";

export function significant(value: number, digits: number): string {
  return value.toLocaleString("en-US", { maximumSignificantDigits: digits, useGrouping: false });
}

/** 0.05 ms, 12 ms, 1.24 s, 2 min 05 s, 1 h 03 min. */
export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return NONE;
  const size = Math.abs(ms);
  if (size === 0) return "0 ms";
  if (size < 0.001) return "< 0.001 ms";
  if (size < 999.5) return `${significant(ms, size < 100 ? 2 : 3)} ms`;
  if (size < 59_995) return `${significant(ms / 1000, 3)} s`;
  const minutes = Math.floor(size / 60_000);
  const sign = ms < 0 ? "-" : "";
  if (minutes < 60) return `${sign}${minutes} min ${pad(Math.floor((size % 60_000) / 1000))} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${sign}${hours} h ${pad(minutes % 60)} min`;
  return `${sign}${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function pad(value: number): string {
  return String(value).padStart(2, "0");
}
