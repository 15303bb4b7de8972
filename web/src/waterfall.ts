/** The layout of a run over time: which stage did what, and when. */

import type { RunDetails } from "./api";

export type Record_ = Record<string, unknown>;

/** Part of a row; times are in milliseconds since the start of the run. */
export type Segment = {
  kind: "queue" | "run" | "wait" | "first" | "stream";
  from: number;
  to: number;
  /** Status of the attempt; empty while nothing runs. */
  status: string;
  attempt: number;
};

export type Row = {
  name: string;
  status: string;
  depth: number;
  attempts: number;
  /** When the last attempt started; null if the stage did not start. */
  start: number | null;
  /** Duration of the last attempt in milliseconds. */
  duration: number | null;
  segments: Segment[];
  critical: boolean;
  /** Records of the attempts, oldest first; empty for a child run. */
  records: Record_[];
  /** Why it did not run, or how it ended. */
  note: string;
  /** Id of the child run that the row shows. */
  child: string | null;
};

export type Waterfall = { rows: Row[]; from: number; to: number };

const text = (value: unknown): string => (typeof value === "string" ? value : "");
const num = (value: unknown): number => (typeof value === "number" ? value : 0);
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const object = (value: unknown): Record_ => (value && typeof value === "object" ? (value as Record_) : {});

/** Milliseconds since the epoch with a fractional part; `Date.parse` drops microseconds. */
export function precise(time: unknown): number {
  const match = /^(.*:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)$/.exec(text(time));
  if (!match) return Date.parse(text(time));
  return Date.parse(`${match[1]}${match[3]}`) + Number(match[2] ?? 0) * 1000;
}

export function layout(details: RunDetails): Waterfall {
  const { run } = details;
  const began = precise(run.started_at);
  const critical = new Set(list(run.critical_path).map(text));
  const records = new Map<string, Record_[]>();
  for (const summary of list(run.stage_summaries).map(object)) records.set(text(summary.stage_name), []);
  for (const record of details.stages) {
    const name = text(record.stage_name);
    records.set(name, [...(records.get(name) ?? []), record]);
  }
  const summaries = new Map(
    list(run.stage_summaries)
      .map(object)
      .map((each) => [text(each.stage_name), each]),
  );
  const running = new Map(
    list(run.stages_running)
      .map(object)
      .map((each) => [text(each.stage_name), each]),
  );
  const children = new Map(details.children.map((each) => [text(each.event_id), each]));
  const now = num(run.duration_ms);

  const rows: Row[] = [];
  for (const [name, all] of records) {
    const row = stageRow(
      name,
      all,
      summaries.get(name) ?? {},
      running.get(name),
      began,
      now,
      critical.has(name),
    );
    rows.push(row);
  }
  // Stages that became ready at the same time keep the order of the pipeline.
  const ready = (row: Row) => row.segments[0]?.from ?? row.start ?? Number.POSITIVE_INFINITY;
  rows.sort((one, other) => (ready(one) === ready(other) ? 0 : ready(one) - ready(other)));

  const withChildren: Row[] = [];
  for (const row of rows) {
    withChildren.push(row);
    const ids = row.records.flatMap((record) => list(record.child_runs).map(text));
    for (const id of [...new Set(ids)]) withChildren.push(childRow(id, children.get(id), began));
  }
  const ends = withChildren.flatMap((row) => row.segments.map((segment) => segment.to));
  const starts = withChildren.flatMap((row) => row.segments.map((segment) => segment.from));
  return {
    rows: withChildren,
    // Clocks of other machines can be ahead or behind.
    from: starts.reduce((least, each) => Math.min(least, each), 0),
    to: ends.reduce((most, each) => Math.max(most, each), Math.max(now, 0.001)),
  };
}

function stageRow(
  name: string,
  records: Record_[],
  summary: Record_,
  running: Record_ | undefined,
  began: number,
  now: number,
  critical: boolean,
): Row {
  const attempts = [...records].sort((one, other) => num(one.attempt) - num(other.attempt));
  const segments: Segment[] = [];
  let previous: { end: number; retryAfter: number } | null = null;
  let start: number | null = null;
  for (const record of attempts) {
    const attempt = num(record.attempt);
    if (attempt === 0) continue;
    start = precise(record.started_at) - began;
    const end = start + num(record.duration_ms);
    wait(segments, previous, start, num(record.queue_ms), attempt);
    run(segments, record, start, end, text(record.status), attempt);
    previous = { end, retryAfter: num(record.retry_after_ms) };
  }
  const last = attempts[attempts.length - 1];
  if (running) {
    const attempt = num(running.attempt) || 1;
    const at = running.started_at
      ? precise(running.started_at) - began
      : Math.max(now - num(summary.duration_ms), 0);
    wait(segments, previous, at, 0, attempt);
    run(segments, running, at, Math.max(now, at), "OPEN", attempt);
    start = at;
  }
  const ended = text(last && last.status !== "RETRY" ? last.status : summary.status) || "OPEN";
  const status = running ? "OPEN" : ended === "OPEN" && attempts.length === 0 ? "PENDING" : ended;
  const number = running ? num(running.attempt) : num(last?.attempts);
  return {
    name,
    status,
    depth: 0,
    attempts: number,
    start,
    duration: running ? now - (start ?? now) : last && num(last.attempt) > 0 ? num(last.duration_ms) : null,
    segments,
    critical,
    records: running ? [...attempts, { ...running, status: "OPEN" }] : attempts,
    note: noteOf(status, last, summary, start !== null),
    child: null,
  };
}

/** Add the time before an attempt: the delay of a retry, then the time in a queue. */
function wait(
  segments: Segment[],
  previous: { end: number; retryAfter: number } | null,
  start: number,
  queued: number,
  attempt: number,
): void {
  if (previous === null) {
    if (queued > 0) segments.push({ kind: "queue", from: start - queued, to: start, status: "", attempt });
    return;
  }
  const delayed = Math.min(previous.end + previous.retryAfter, start);
  if (delayed > previous.end)
    segments.push({ kind: "wait", from: previous.end, to: delayed, status: "", attempt });
  if (start > delayed) segments.push({ kind: "queue", from: delayed, to: start, status: "", attempt });
}

function run(
  segments: Segment[],
  record: Record_,
  start: number,
  end: number,
  status: string,
  attempt: number,
): void {
  const first = object(record.stream).first_chunk_ms;
  if (typeof first === "number" && start + first < end) {
    segments.push({ kind: "first", from: start, to: start + first, status, attempt });
    segments.push({ kind: "stream", from: start + first, to: end, status, attempt });
  } else segments.push({ kind: "run", from: start, to: end, status, attempt });
}

function noteOf(status: string, last: Record_ | undefined, summary: Record_, started: boolean): string {
  const error = text(last?.error) || text(summary.error);
  const reason = text(last?.reason);
  if (status === "PENDING") return "not started";
  if (status === "OPEN") return "";
  if (status === "OK") return itemsOf(last);
  return error || reason || (started ? "" : "not started");
}

/** "39 of 40 items, 1 failed" for a stage with items. */
export function itemsOf(record: Record_ | undefined): string {
  const items = object(record?.items);
  if (!num(items.total)) return "";
  const failed = num(items.failed) ? `, ${num(items.failed).toLocaleString("en-US")} failed` : "";
  return `${num(items.ok).toLocaleString("en-US")} of ${num(items.total).toLocaleString("en-US")} items${failed}`;
}

function childRow(id: string, run: Record_ | undefined, began: number): Row {
  const start = run ? precise(run.started_at) - began : null;
  const duration = run ? num(run.duration_ms) : null;
  const status = run ? text(run.outcome) || text(run.status) : "";
  return {
    name: run ? text(run.pipeline_name) : id,
    status,
    depth: 1,
    attempts: 1,
    start,
    duration,
    segments:
      start === null || duration === null
        ? []
        : [{ kind: "run", from: start, to: start + duration, status, attempt: 1 }],
    critical: false,
    records: [],
    note: run ? text(run.error) : "not in the records",
    child: id,
  };
}
