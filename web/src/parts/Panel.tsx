/** A part of a view with its own query: it shows its age, its errors, and a slow query. */

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Problem } from "../api";
import { Ago, now } from "../clock";
import { Icon } from "../icons";
import type { Loaded } from "../query";
import { savedPage } from "../saved";
import { useStore } from "../store";

type Properties<T> = {
  title: ComponentChildren;
  query: Loaded<T>;
  /** Height of the content while it is loading, in pixels. */
  height: number;
  actions?: ComponentChildren;
  footer?: ComponentChildren;
  /** Whether the content reaches the border, as a table does. */
  flush?: boolean;
  /** Whether another panel with the same query shows its age and that it is slow. */
  secondary?: boolean;
  children: (data: T) => ComponentChildren;
};

export function Panel<T>({
  title,
  query,
  height,
  actions,
  footer,
  flush = false,
  secondary = false,
  children,
}: Properties<T>): JSX.Element {
  const { data, problem, loading, stale } = query;
  return (
    <section class={`panel ${flush ? "flush" : ""}`} aria-busy={loading}>
      <header>
        <h2>{title}</h2>
        {/* Before the controls, so that these do not move when the age appears. */}
        {!secondary && <SlowQuery query={query} />}
        {data !== null && !secondary && <Age query={query} />}
        {actions}
      </header>
      <div class="body">
        {problem && !secondary && <ProblemBox problem={problem} retry={query.reload} />}
        {data !== null ? (
          <div class={stale ? "stale" : ""}>{children(data)}</div>
        ) : (
          !problem && <Skeleton height={height} />
        )}
      </div>
      {footer && data !== null && <footer>{footer}</footer>}
    </section>
  );
}

/** How old the data of a panel is, if it does not follow new records. */
function Age<T>({ query }: { query: Loaded<T> }): JSX.Element | null {
  const current = useStore(now);
  if (savedPage) return null;
  const old = current - query.receivedAt > 15_000;
  return (
    <>
      {old && (
        <span class="age">
          <Ago at={query.receivedAt} />
        </span>
      )}
      <button type="button" class="plain" onClick={query.reload} aria-label="Reload" title="Reload">
        <Icon name="refresh" />
      </button>
    </>
  );
}

/** After a second, how long the query has been running, and a button that cancels it. */
function SlowQuery<T>({ query }: { query: Loaded<T> }): JSX.Element | null {
  const seconds = useSeconds(query.loading ? query.startedAt : 0);
  if (!query.loading || seconds < 1) return null;
  return (
    <span class="slow" role="status">
      Querying for {seconds} s
      <button type="button" onClick={query.cancel}>
        Cancel
      </button>
    </span>
  );
}

function useSeconds(since: number): number {
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    setSeconds(0);
    if (!since) return undefined;
    const timer = setInterval(() => setSeconds(Math.floor((Date.now() - since) / 1000)), 500);
    return () => clearInterval(timer);
  }, [since]);
  return seconds;
}

/** An empty area with the height of the content; visible after 300 ms. */
export function Skeleton({ height }: { height: number }): JSX.Element {
  const [visible, setVisible] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setVisible(true), 300);
    return () => clearTimeout(timer);
  }, []);
  return (
    <div class={`skeleton ${visible ? "" : "waiting"}`} style={{ height: `${height}px` }}>
      <span class="unseen">Loading</span>
    </div>
  );
}

export function ProblemBox({ problem, retry }: { problem: Problem; retry?: () => void }): JSX.Element {
  return (
    <div class="problem" role="alert">
      <strong>{problem.title}</strong>
      {problem.hint && <span>{problem.hint}</span>}
      {retry && !savedPage && problem.reason !== "invalid" && (
        <button type="button" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Empty({ children }: { children: ComponentChildren }): JSX.Element {
  return <div class="empty">{children}</div>;
}
