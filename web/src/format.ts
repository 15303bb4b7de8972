/** Numbers, durations and times as text. */

import { duration, NONE, pad, significant } from "./duration";
import { zone } from "./settings";

export { duration };

/** The name of the rows in which a field has no value. */
export const NO_VALUE = "no value";

/** 18,204. */
export function count(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  return Math.round(value).toLocaleString("en-US");
}

/** 950, 18.2k, 1.4M: for axes and narrow columns. */
export function compact(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  const size = Math.abs(value);
  if (size < 1000) return significant(value, 3);
  if (size < 999_500) return `${significant(value / 1000, 3)}k`;
  if (size < 999_500_000) return `${significant(value / 1e6, 3)}M`;
  return `${significant(value / 1e9, 3)}G`;
}

/** Any number with at most four significant digits. */
export function number(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1000) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  if (size < 0.0001) return value.toExponential(1);
  return significant(value, 4);
}

/** 52%, 0.4%, 99.96%: never 0% or 100% unless it is exact. */
export function percent(share: number | null | undefined): string {
  if (share === null || share === undefined) return NONE;
  const value = share * 100;
  if (value === 0 || value === 100) return `${value}%`;
  if (value < 0.01) return "< 0.01%";
  if (value < 9.95) return `${significant(value, 2)}%`;
  if (value < 99.5) return `${Math.round(value)}%`;
  return `${Math.min(Math.round(value * 100) / 100, 99.99)}%`;
}

/** 52%, 0.4%, >99%: a share in a sentence, rounded as the server does. */
export function about(share: number): string {
  return share > 0.995 && share < 1 ? ">99%" : percent(share);
}

/** 2e-04, 0.025. */
export function qValue(value: number): string {
  if (value === 0) return "< 1e-99";
  return value < 0.001 ? value.toExponential(0).replace(/e-(\d)$/, "e-0$1") : significant(value, 2);
}

/** 4.1 MB. */
export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  if (value < 1000) return `${value} B`;
  if (value < 1e6) return `${significant(value / 1e3, 3)} kB`;
  if (value < 1e9) return `${significant(value / 1e6, 3)} MB`;
  return `${significant(value / 1e9, 3)} GB`;
}

/** A number of a field: with the unit that the name of the field contains. */
export function measured(field: string, value: number | null | undefined): string {
  if (field.endsWith("_ms")) return duration(value);
  if (field.endsWith("_s")) return duration(value === null || value === undefined ? value : value * 1000);
  if (field.endsWith("_bytes") || field.endsWith("bytes")) return bytes(value);
  return number(value);
}

/** "1 run", "2 runs". */
export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${Math.round(value) === 1 ? one : many}`;
}

type Style = "date" | "minute" | "second" | "ms";

/** 2026-11-27 14:02:11, in the time zone that was chosen. */
export function time(at: string | number, style: Style = "second"): string {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return NONE;
  // Shift the time so that the UTC fields show the local time.
  const shift = zone.value === "utc" ? 0 : date.getTimezoneOffset() * 60_000;
  const text = new Date(date.getTime() - shift).toISOString();
  if (style === "date") return text.slice(0, 10);
  if (style === "minute") return `${text.slice(0, 10)} ${text.slice(11, 16)}`;
  if (style === "second") return `${text.slice(0, 10)} ${text.slice(11, 19)}`;
  return `${text.slice(0, 10)} ${text.slice(11, 23)}`;
}

/** The time of day, with the date if it is not today. */
export function shortTime(at: string | number, style: Style = "minute"): string {
  const text = time(at, style);
  return text.slice(0, 10) === time(Date.now(), "date") ? text.slice(11) : text.slice(5);
}

/** Replace the RFC 3339 times in a text of the server by short times in the zone of the page. */
export function withTimes(text: string): string {
  return text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, (each) => shortTime(each, "second"));
}

/** The time zone that the page shows: UTC, or UTC+01:00. */
export function zoneName(shown = zone.value): string {
  const minutes = shown === "utc" ? 0 : -new Date().getTimezoneOffset();
  if (minutes === 0) return "UTC";
  const size = Math.abs(minutes);
  return `UTC${minutes < 0 ? "-" : "+"}${pad(Math.floor(size / 60))}:${pad(size % 60)}`;
}

/** "12 s ago", "3 min ago", "2 h ago", "5 d ago"; from a month on, the date. */
export function ago(at: string | number, now = Date.now()): string {
  const seconds = Math.round((now - new Date(at).getTime()) / 1000);
  if (Number.isNaN(seconds)) return NONE;
  if (seconds < -5) return time(at);
  if (seconds < 60) return `${Math.max(seconds, 0)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds < 31 * 86_400) return `${Math.floor(seconds / 86_400)} d ago`;
  return time(at, "date");
}

/** Any JSON value on one line. */
export function value(each: unknown): string {
  if (each === null || each === undefined) return NONE;
  if (typeof each === "string") return each;
  if (typeof each === "number") return number(each);
  return JSON.stringify(each);
}

/** The first part of an id that is long enough to recognize it. */
export function shortId(id: string): string {
  return id.length > 16 ? `${id.slice(0, 4)}…${id.slice(-6)}` : id;
}
