/** The list of runs, and the runs in progress. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Runs as Page, RunSummary } from "../api";
import { command } from "../command";
import { count, duration, percent, plural, time } from "../format";
import { scope, section, table } from "../markdown";
import { usePage } from "../page";
import { Headline } from "../parts/Headline";
import { NewestRun } from "../parts/NewestRun";
import { Empty, Panel } from "../parts/Panel";
import { moveBetweenRows, RunTable } from "../parts/RunTable";
import { splitResult } from "../predicate";
import { useQuery } from "../query";
import { changed, go, Link, useParameters, viewAddress } from "../router";
import { live } from "../settings";
import { useStore } from "../store";
import { followed, inProgress, snapshot } from "../stream";

export function Runs(): JSX.Element {
  const state = useParameters();
  const range = { where: state.where ?? "", since: state.since ?? "", until: state.until ?? "" };
  const order = state.order ?? "-started_at";
  const query = useQuery<Page>("runs", "api/runs", {
    ...range,
    order: state.order,
    before: state.before,
    limit: 200,
    count: 1,
  });
  const checked = (state.checked ?? "").split(" ").filter(Boolean);
  const data = query.data;
  useEffect(() => {
    const press = (event: KeyboardEvent) => moveBetweenRows(event, document);
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, []);

  usePage({
    title: "Runs",
    command: command("runs", state, "--limit", "200"),
    ...(data ? { sql: data.sql, markdown: () => markdown(state, data) } : {}),
  });

  const check = (id: string) => {
    const next = checked.includes(id) ? checked.filter((each) => each !== id) : [...checked.slice(-1), id];
    go(changed({ checked: next.join(" ") }), { replace: true });
  };
  const [first, second] = checked;

  return (
    <div class="stack">
      <Summary data={data} stale={query.stale} />
      <InProgress range={range} />
      <Panel
        flush
        title="Runs"
        query={query}
        height={560}
        actions={
          <>
            {data && !state.before && order === "-started_at" && (
              <NewRows page={data} range={range} load={query.reload} />
            )}
            <Link to={viewAddress("explore", splitResult(state.where))}>Explore these runs</Link>
          </>
        }
        footer={data && <Pages data={data} state={state} />}
      >
        {(page) =>
          page.rows.length ? (
            <RunTable rows={page.rows} label="Runs" order={order} checked={checked} onCheck={check} />
          ) : (
            <NoRuns
              filtered={Boolean(range.where || range.since || range.until)}
              ranged={Boolean(range.since || range.until)}
            />
          )
        }
      </Panel>
      {first && (
        <div class="compare-bar" role="status">
          {second ? (
            <Link to={viewAddress("compare", { id: first, with: second })}>
              Compare the two selected runs
            </Link>
          ) : (
            <span>Select another run to compare</span>
          )}
          <button type="button" onClick={() => go(changed({ checked: "" }), { replace: true })}>
            Clear
          </button>
        </div>
      )}
    </div>
  );
}

function Summary({ data, stale }: { data: Page | null; stale: boolean }): JSX.Element {
  const state = useParameters();
  const rows = data?.rows ?? [];
  const failed = rows.filter((row) => row.failed).length;
  const counted = rows.filter((row) => row.failed !== null).length;
  // The rate of one page depends on the order; only the rate of all runs is worth stating.
  const isComplete = rows.length === data?.total;
  const text = !data
    ? "Runs"
    : data.total === 0
      ? "No run matches"
      : `${plural(data.total ?? rows.length, "run")}${state.where ? " match the filter" : ""}` +
        (counted && isComplete ? `; ${percent(failed / counted)} failed` : "");
  return <Headline text={text} stale={stale} />;
}

function Pages({ data, state }: { data: Page; state: Record<string, string> }): JSX.Element {
  return (
    <>
      <span>
        {plural(data.rows.length, "run")}
        {data.total !== null && data.total > data.rows.length ? ` of ${count(data.total)}` : ""}
        {data.rows.some((row) => row.weight > 1) ? " (counts are estimates, because runs were sampled)" : ""}
      </span>
      {state.before && <Link to={changed({ before: "" })}>First page</Link>}
      {data.next && <Link to={changed({ before: data.next })}>Next 200</Link>}
    </>
  );
}

type Range = { where: string; since: string; until: string };

/** A button for the runs that ended since the list was loaded, so that the list does not move by itself. */
function NewRows({ page, range, load }: { page: Page; range: Range; load: () => void }): JSX.Element | null {
  const version = useStore(followed);
  const on = useStore(live);
  const [seen] = useState(version);
  const isBehind = on && version !== seen && !range.until;
  const newest = useQuery<Page>("runs-new", isBehind ? "api/runs" : null, { ...range, limit: 200 }, followed);
  const shown = new Set(page.rows.map((row) => row.run_id));
  const rows = newest.data?.rows ?? [];
  // Rows after the last one that is shown belong to the next page.
  const last = rows.findLastIndex((row) => shown.has(row.run_id));
  const end = page.next === null || last < 0 ? rows.length : last + 1;
  const added = rows.slice(0, end).filter((row) => !shown.has(row.run_id)).length;
  if (!isBehind || added === 0) return null;
  return (
    <button type="button" class="primary" onClick={load}>
      {last < 0 && newest.data?.next ? `${count(added)} new runs or more` : plural(added, "new run")}
    </button>
  );
}

function InProgress({ range }: { range: Range }): JSX.Element | null {
  const reported = useStore(inProgress);
  const unfiltered = !range.where && !range.since && !range.until;
  const query = useQuery<Page>("live", unfiltered && reported ? null : "api/live", range, followed);
  const rows: RunSummary[] = (unfiltered && reported ? reported.rows : query.data?.rows) ?? [];
  if (rows.length === 0) return null;
  return (
    <section class="panel flush">
      <header>
        <h2>{plural(rows.length, "run")} in progress</h2>
      </header>
      <div class="body">
        <RunTable rows={rows.slice(0, 20)} label="Runs in progress" />
      </div>
      {rows.length > 20 && <footer>{count(rows.length - 20)} more runs in progress</footer>}
    </section>
  );
}

function NoRuns({ filtered, ranged }: { filtered: boolean; ranged: boolean }): JSX.Element {
  const info = useStore(snapshot);
  if (!filtered) {
    return (
      <Empty>
        <strong>{info ? `${info.source} contains no runs yet.` : "There are no runs yet."}</strong>
        <span>
          Give the pipeline a journal, as in <code>stageflow.configure(journal="journal")</code>, or try{" "}
          <code>stageflow demo</code>. Runs appear here when they end.
        </span>
      </Empty>
    );
  }
  return (
    <Empty>
      <strong>No run matches the filter and the time range.</strong>
      {!ranged && info && <span>The records contain {plural(info.runs, "run")}.</span>}
      {ranged && <NewestRun />}
      <span>
        <button type="button" onClick={() => go(viewAddress("runs", { where: "", since: "", until: "" }))}>
          Show all runs
        </button>
      </span>
    </Empty>
  );
}

function markdown(state: Record<string, string>, data: Page): string {
  const rows = data.rows.slice(0, 30);
  return section(
    `# Runs (${count(data.total ?? data.rows.length)})`,
    scope(state),
    table(
      ["started", "pipeline", "outcome", "duration", "error", "org", "user", "version", "run"],
      rows.map((row) => [
        time(row.started_at),
        row.pipeline,
        row.outcome,
        duration(row.duration_ms),
        [row.failed_stage, row.error].filter(Boolean).join(": "),
        row.org_id ?? "",
        row.user_id ?? "",
        row.service_version ?? "",
        row.run_id,
      ]),
    ),
    data.rows.length > rows.length && `(the first ${rows.length})`,
  );
}
