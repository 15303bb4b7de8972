/** The status of a run or a stage: a shape, a colour and a word. */

import type { JSX } from "preact";

export type Kind = "ok" | "skip" | "retry" | "fail" | "cancel" | "running";

const SHAPES: Record<Kind, string> = { ok: "●", skip: "○", retry: "↻", fail: "✕", cancel: "◼", running: "◐" };

const KINDS: Record<string, Kind> = {
  OK: "ok",
  SKIP: "skip",
  RETRY: "retry",
  FAIL: "fail",
  CANCEL: "cancel",
  OPEN: "running",
  PENDING: "skip",
  ok: "ok",
  stopped: "ok",
  degraded: "retry",
  failed: "fail",
  timeout: "fail",
  crashed: "fail",
  cancelled: "cancel",
  suspended: "skip",
  open: "running",
};

export function kindOf(status: string): Kind {
  return KINDS[status] ?? "skip";
}

const WORDS: Record<string, string> = {
  OK: "ok",
  SKIP: "skipped",
  RETRY: "retried",
  FAIL: "failed",
  CANCEL: "cancelled",
  OPEN: "running",
  PENDING: "not started",
  open: "running",
};

export function wordOf(status: string): string {
  return WORDS[status] ?? status;
}

export function Mark({ status, word = true }: { status: string; word?: boolean }): JSX.Element {
  const kind = kindOf(status);
  return (
    <span class={`mark is-${kind}`}>
      <span class="shape" aria-hidden="true">
        {SHAPES[kind]}
      </span>
      <span class={word ? "" : "unseen"}>{wordOf(status)}</span>
    </span>
  );
}

export function shapeOf(kind: Kind): string {
  return SHAPES[kind];
}
