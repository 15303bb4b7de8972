/** One run: its waterfall, its stages, and why it differs from other runs. */

import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Measured, RunDetails, RunExplanation, Runs } from "../api";
import { Graph } from "../charts/Graph";
import { Waterfall, WaterfallLegend } from "../charts/Waterfall";
import { request } from "../client";
import { Ago } from "../clock";
import { duration, measured, percent, plural, shortTime, time, value } from "../format";
import { section, table } from "../markdown";
import { usePage } from "../page";
import { Details } from "../parts/Details";
import { kindOf, Mark, wordOf } from "../parts/Mark";
import { Menu } from "../parts/Menu";
import { Empty, Panel } from "../parts/Panel";
import { announce } from "../parts/Toast";
import { and, identifier, literal } from "../predicate";
import { type Loaded, useExplained } from "../query";
import { changed, go, Link, useParameters, viewAddress } from "../router";
import { savedPage } from "../saved";
import { followed } from "../stream";
import { layout, type Record_, type Row } from "../waterfall";

const WHOLE = "*";

/** The details of a run, which are loaded again while it is in progress. */
export function useRun(panel: string, id: string): Loaded<RunDetails> {
  const [isOpen, setOpen] = useState(false);
  const query = useExplained<RunDetails>(panel, id ? "api/run" : null, { id }, isOpen ? followed : null);
  const running = query.data?.run.status === "OPEN";
  useEffect(() => setOpen(running), [running]);
  return query;
}

export function Run(): JSX.Element {
  const state = useParameters();
  const id = state.id ?? "";
  const query = useRun("run", id);
  const { data } = query;
  const plan = useMemo(() => (data ? layout(data) : null), [data]);
  const names = plan?.rows.filter((row) => row.child === null).map((row) => row.name) ?? [];
  const selected = state.stage ?? text(data?.run.first_failed_stage) ?? WHOLE;
  const row = plan?.rows.find((each) => each.name === selected && each.child === null);

  const select = (name: string) => go(changed({ stage: name, tab: "", attempt: "" }), { replace: true });

  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const step = { j: 1, k: -1 }[event.key];
      const target = event.target as HTMLElement;
      if (step === undefined || event.ctrlKey || event.metaKey || target.closest("input, textarea, select"))
        return;
      const order = [WHOLE, ...names];
      const at = Math.min(Math.max(order.indexOf(row ? row.name : WHOLE) + step, 0), order.length - 1);
      select(order[at] as string);
      document.querySelectorAll<HTMLElement>("button.wf-row")[at - 1]?.scrollIntoView({ block: "nearest" });
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  });

  usePage({
    title: data ? `${text(data.run.pipeline_name)} ${outcome(data.run)}` : "Run",
    command: `stageflow show ${id}`,
    sql: `SELECT *\nFROM stages\nWHERE pipeline_run_id = ${literal(id)}\nORDER BY started_at`,
    ...(data && plan ? { markdown: () => markdown(data, plan.rows) } : {}),
  });

  if (!id) {
    return (
      <Empty>
        <strong>No run is selected.</strong>
        <Link to={viewAddress("runs")}>Open the list of runs</Link>
      </Empty>
    );
  }
  return (
    <div class="stack">
      {data && <Heading details={data} isSearching={query.provisional} />}
      <Panel
        title={data ? `${plural(names.length, "stage")}` : "Stages"}
        query={query}
        height={320}
        actions={
          data && (
            <>
              <span class="choice" role="group" aria-label="Show as">
                <button
                  type="button"
                  aria-pressed={!state.graph}
                  onClick={() => go(changed({ graph: "" }), { replace: true })}
                >
                  Waterfall
                </button>
                <button
                  type="button"
                  aria-pressed={Boolean(state.graph)}
                  onClick={() => go(changed({ graph: "1" }), { replace: true })}
                >
                  Graph
                </button>
              </span>
              {!savedPage && <CompareMenu details={data} />}
            </>
          )
        }
        footer={
          !state.graph && data && <WaterfallLegend typical={Object.keys(data.typical_stages).length > 0} />
        }
      >
        {(details) =>
          plan && plan.rows.length ? (
            state.graph ? (
              <RunGraph details={details} rows={plan.rows} selected={selected} onSelect={select} />
            ) : (
              <Waterfall
                layout={plan}
                typical={details.typical_stages}
                selected={row ? selected : null}
                onSelect={(name) => select(name === selected ? WHOLE : name)}
              />
            )
          ) : (
            <Empty>This run has no stages in the records.</Empty>
          )
        }
      </Panel>
      {data?.explanation ? (
        <Explanation explanation={data.explanation} onSelect={select} />
      ) : (
        query.provisional && (
          <section class="panel explanation" aria-busy="true">
            <header>
              <h2>Comparing this run with others…</h2>
            </header>
          </section>
        )
      )}
      {data && (
        <section class="panel" aria-label="Details">
          <header>
            <h2>
              {row ? (
                <>
                  <Mark status={row.status} word={false} /> {row.name}
                </>
              ) : (
                "The whole run"
              )}
            </h2>
            {row && <AttemptChoice row={row} />}
            {row && (
              <button type="button" class="text" onClick={() => select(WHOLE)}>
                Show the whole run
              </button>
            )}
            <span class="muted small wide-only">j and k move between stages</span>
          </header>
          <div class="body">
            {row ? (
              <Details
                stage={row.name}
                record={attemptOf(row, state.attempt)}
                events={data.events.filter(([, event]) => event.stage_name === row.name)}
                typical={data.typical_stages[row.name]}
              />
            ) : (
              <Details stage={null} record={data.run} events={data.events} typical={data.typical} />
            )}
          </div>
        </section>
      )}
    </div>
  );
}

function text(each: unknown): string | undefined {
  return typeof each === "string" && each ? each : undefined;
}

function object(each: unknown): Record_ {
  return each && typeof each === "object" ? (each as Record_) : {};
}

export function outcome(run: Record_): string {
  return wordOf(text(run.outcome) ?? text(run.status) ?? "");
}

function attemptOf(row: Row, attempt: string | undefined): Record_ {
  return (
    row.records.find((each) => String(each.attempt) === attempt) ??
    row.records[row.records.length - 1] ?? { status: row.status }
  );
}

function AttemptChoice({ row }: { row: Row }): JSX.Element | null {
  const state = useParameters();
  if (row.records.length < 2) return null;
  const current = attemptOf(row, state.attempt);
  return (
    <label class="control">
      attempt
      <select
        value={String(current.attempt)}
        onChange={(event) => go(changed({ attempt: event.currentTarget.value, tab: "" }), { replace: true })}
      >
        {row.records.map((each) => (
          <option key={String(each.attempt)} value={String(each.attempt)}>
            {String(each.attempt)}: {wordOf(String(each.status))}
          </option>
        ))}
      </select>
    </label>
  );
}

function Heading({ details, isSearching }: { details: RunDetails; isSearching: boolean }): JSX.Element {
  const { run, typical, explanation } = details;
  const ids = object(run.correlation_ids);
  const version = text(object(run.resource).service_version);
  const took = typeof run.duration_ms === "number" ? run.duration_ms : null;
  const isOpen = run.status === "OPEN";
  const kind = kindOf(text(run.outcome) ?? text(run.status) ?? "");
  const usual = explanation
    ? explanation.duration_ms.p50
    : typical && typical.rows > 1
      ? typical.p50_ms
      : null;
  const links: [string, string, string | undefined][] = [
    ["Organization", "org_id", text(ids.org_id)],
    ["User", "user_id", text(ids.user_id)],
    ["Version", "service_version", version],
  ];
  return (
    <header class="run-heading">
      <h1>
        <Mark status={text(run.outcome) ?? text(run.status) ?? ""} word={false} />{" "}
        <bdi>{text(run.pipeline_name) ?? "run"}</bdi> <span class={`is-${kind}`}>{outcome(run)}</span>{" "}
        {isOpen ? `for ${duration(took)}` : `after ${duration(took)}`}
        {usual !== null && <span class="muted"> (p50 {duration(usual)})</span>}
      </h1>
      {text(run.error) && (
        <p class="is-fail">
          <bdi>{text(run.error)}</bdi>
        </p>
      )}
      {(explanation?.summary || isSearching) && (
        <p class={explanation ? "" : "muted"}>
          <bdi>{explanation?.summary ?? "Comparing this run with others…"}</bdi>
        </p>
      )}
      <p class="facts-line muted">
        <code>{text(run.event_id)}</code>
        <span>
          started <Ago at={text(run.started_at) ?? ""} />, {shortTime(text(run.started_at) ?? "", "second")}
        </span>
        {links.map(
          ([name, field, each]) =>
            each && (
              <span key={field}>
                {name}{" "}
                <Link to={viewAddress("runs", { where: `${identifier(field)} = ${literal(each)}` })}>
                  {each}
                </Link>
              </span>
            ),
        )}
        {text(run.parent_run_id) && (
          <span>
            started by{" "}
            <Link to={viewAddress("run", { id: text(run.parent_run_id) ?? "" })}>its parent run</Link>
          </span>
        )}
      </p>
    </header>
  );
}

function CompareMenu({ details }: { details: RunDetails }): JSX.Element {
  const { run } = details;
  const id = text(run.event_id) ?? "";
  const open = (other: string) => go(viewAddress("compare", { id, with: other }));
  const find = async (condition: string, what: string) => {
    try {
      const where = and(`pipeline_name = ${literal(text(run.pipeline_name) ?? "")}`, condition);
      const found = await request<Runs>("compare", "api/runs", { where, limit: 5 });
      const other = found.rows.find((row) => row.run_id !== id);
      if (other) open(other.run_id);
      else announce(`There is no other ${what} of this pipeline`);
    } catch {
      announce("The runs could not be loaded");
    }
  };
  return (
    <Menu
      end
      label="Compare"
      items={[
        {
          label: "With the newest successful run",
          run: () => void find("outcome = 'ok'", "successful run"),
        },
        { label: "With the newest failure", run: () => void find("failed", "failure") },
      ]}
      form={(close) => (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            const other = String(new FormData(event.currentTarget).get("other") ?? "").trim();
            if (!other) return;
            close();
            open(other);
          }}
        >
          <label>
            With another run
            <input name="other" placeholder="id of the run" spellcheck={false} required />
          </label>
          <button type="submit">Compare</button>
        </form>
      )}
    />
  );
}

type GraphProperties = {
  details: RunDetails;
  rows: Row[];
  selected: string;
  onSelect: (name: string) => void;
};

function RunGraph({ rows, selected, onSelect }: GraphProperties): JSX.Element {
  const stages = rows.filter((row) => row.child === null);
  const edges = stages.flatMap((row) => {
    const dependencies = row.records[row.records.length - 1]?.dependencies;
    return (Array.isArray(dependencies) ? dependencies : []).map((each): [string, string] => [
      String(each),
      row.name,
    ]);
  });
  return (
    <Graph
      label="Graph of the stages"
      selected={selected}
      onSelect={onSelect}
      edges={edges}
      nodes={stages.map((row) => ({
        name: row.name,
        detail: row.duration === null ? wordOf(row.status) : duration(row.duration),
        status: kindOf(row.status),
        heat: null,
        critical: row.critical,
      }))}
    />
  );
}

/** Why the run took long, and which of its values are unusual. */
function Explanation({
  explanation,
  onSelect,
}: {
  explanation: RunExplanation;
  onSelect: (name: string) => void;
}): JSX.Element | null {
  const { stages, unusual, peers, same_error: same } = explanation;
  const rows = stages
    .flatMap((stage) =>
      (["ran_ms", "waited_ms", "retried_ms"] as const).map((part) => ({
        stage,
        part,
        measured: stage[part],
        excess: excess(stage[part]),
      })),
    )
    .filter(
      ({ measured: each, excess: more }) =>
        each.value !== null && each.value > 0 && matters(each, more, explanation),
    )
    .sort((one, other) => Math.abs(other.excess) - Math.abs(one.excess))
    .slice(0, 8);
  const what = { ran_ms: "ran", waited_ms: "waited", retried_ms: "retried" };
  const compared = peers.rows > 0;
  // Above the p95 of the other runs; a fast run that failed is not slow.
  const slow = compared && (explanation.duration_ms.value ?? 0) > (explanation.duration_ms.p95 ?? Infinity);
  if (!compared && !same) return null;
  return (
    <section class="panel explanation">
      <header>
        <h2>
          {slow ? "Why this run was slow: compared with " : "Compared with "}
          {compared ? plural(peers.count, "other run") : "other runs"} of {explanation.pipeline}
          {compared ? " with outcome ok" : ""}
        </h2>
      </header>
      <div class="body stack">
        {same && (
          <p>
            <Link to={viewAddress("runs", { where: same.where, since: "", until: "" })}>
              {plural(same.failures.count, "run")} failed with the same error
              {same.stage ? ` in ${same.stage}` : ""}
            </Link>{" "}
            ({percent(same.failures.share)} of all failures), first <Ago at={same.first_at} />, last{" "}
            <Ago at={same.last_at} />.
          </p>
        )}
        {!compared && (
          <p class="muted">
            No other run of this pipeline has the outcome ok, so there is nothing to compare with.
          </p>
        )}
        {compared && rows.length === 0 && (
          <p class="muted">No stage took much more or less time than in the other runs.</p>
        )}
        {compared && rows.length > 0 && (
          <div class="table-scroll">
            <table class="rows" aria-label="Times compared with other runs">
              <thead>
                <tr>
                  <th scope="col">Stage</th>
                  <th scope="col" class="medium-only">
                    What
                  </th>
                  <th scope="col" class="number">
                    This run
                  </th>
                  <th scope="col" class="number">
                    Difference
                  </th>
                  <th scope="col" class="number medium-only">
                    p50
                  </th>
                  <th scope="col" class="number medium-only">
                    p95
                  </th>
                  <th scope="col" class="number medium-only">
                    Slower than
                  </th>
                </tr>
              </thead>
              <tbody>
                {rows.map(({ stage, part, measured: each, excess: more }) => (
                  <tr key={stage.stage + part}>
                    <td>
                      <button type="button" class="text" onClick={() => onSelect(stage.stage)}>
                        {stage.stage}
                      </button>
                      {stage.critical && <span class="muted small medium-only"> critical path</span>}
                      <div class="small-only muted small">
                        {what[part]} · <span class="nowrap">p50 {duration(each.p50)}</span> ·{" "}
                        <span class="nowrap">p95 {duration(each.p95)}</span>
                        {each.percentile !== null && (
                          <>
                            {" · "}
                            <span class="nowrap">slower than {percent(each.percentile)}</span>
                          </>
                        )}
                      </div>
                    </td>
                    <td class="medium-only">{what[part]}</td>
                    <td class="number">{duration(each.value)}</td>
                    <td class={`number ${more > 0 && (each.percentile ?? 0) > 0.95 ? "is-fail" : ""}`}>
                      {more > 0 ? "+" : "−"}
                      {duration(Math.abs(more))}
                    </td>
                    <td class="number medium-only">{duration(each.p50)}</td>
                    <td class="number medium-only">{duration(each.p95)}</td>
                    <td class="number medium-only">{percent(each.percentile)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
        {unusual.length > 0 && (
          <div>
            <h3>Unusual values</h3>
            <ul class="plain-list">
              {unusual.slice(0, 10).map((each) => (
                <li key={each.field}>
                  <strong>{each.field}</strong> ={" "}
                  {typeof each.value === "number" ? measured(each.field, each.value) : value(each.value)}
                  <span class="muted">
                    {" "}
                    ({each.similar_share !== null &&
                      `${percent(each.similar_share)} of the ${explanation.similar_are}, `}
                    {percent(each.share)} of the other runs
                    {each.typical !== String(each.value) && (
                      <>
                        ; typical{" "}
                        {typeof each.typical === "number"
                          ? measured(each.field, each.typical)
                          : each.typical}
                        {each.typical_share !== null ? `, ${percent(each.typical_share)}` : ""}
                      </>
                    )}
                    {each.same_time_share !== null &&
                      `; due to the time: ${percent(each.same_time_share)} of the other runs from that time have it`}
                    )
                  </span>
                </li>
              ))}
            </ul>
          </div>
        )}
        {explanation.limitations.map((each) => (
          <p key={each} class="muted">
            {each}
          </p>
        ))}
      </div>
    </section>
  );
}

/** Whether a difference is at least a fiftieth of the run, or a five-hundredth and rare among other runs. */
function matters(each: Measured, more: number, { duration_ms: whole, peers }: RunExplanation): boolean {
  const isRare = peers.rows >= 20 && more > 0 && (each.percentile ?? 0) > 0.95;
  return more !== 0 && Math.abs(more) >= (whole.value ?? 0) / (isRare ? 500 : 50);
}

function excess(each: Measured): number {
  return each.value === null ? 0 : each.value - (each.p50 ?? 0);
}

function markdown(details: RunDetails, rows: Row[]): string {
  const { run, explanation } = details;
  const exception = object(run.exception);
  return section(
    `# ${text(run.pipeline_name)} ${outcome(run)} after ${duration(run.duration_ms as number)}`,
    [
      `- run: ${text(run.event_id)}`,
      `- started: ${time(text(run.started_at) ?? "", "ms")}`,
      details.typical &&
        `- typical duration: ${duration(details.typical.p50_ms)} (p95 ${duration(details.typical.p95_ms)})`,
      text(run.error) && `- error: ${text(run.error)}`,
      exception.stack && `- raised at: ${(exception.stack as string[]).slice(-2).join(" < ")}`,
      Object.keys(object(run.attributes)).length > 0 &&
        `- attributes: \`${JSON.stringify(run.attributes).slice(0, 500)}\``,
    ]
      .filter(Boolean)
      .join("\n"),
    explanation?.summary,
    table(
      ["stage", "status", "attempts", "start", "duration", "typical p50", "critical", "note"],
      rows.map((row) => [
        row.name,
        wordOf(row.status),
        String(row.attempts),
        duration(row.start),
        duration(row.duration),
        duration(details.typical_stages[row.name]?.p50_ms),
        row.critical ? "yes" : "",
        row.note,
      ]),
    ),
  );
}
