/** Two runs side by side. */

import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type { RunDetails } from "../api";
import { Waterfall, WaterfallLegend } from "../charts/Waterfall";
import { duration, measured, plural, time, value } from "../format";
import { section, table } from "../markdown";
import { usePage } from "../page";
import { Mark } from "../parts/Mark";
import { Empty, Panel } from "../parts/Panel";
import { go, Link, useParameters, viewAddress } from "../router";
import { layout, type Record_, type Row } from "../waterfall";
import { outcome, useRun } from "./Run";

type Line = { name: string; one: Row | undefined; other: Row | undefined; change: number | null };

export function Compare(): JSX.Element {
  const state = useParameters();
  const one = useRun("run-one", state.id ?? "");
  const other = useRun("run-other", state.with ?? "");
  const first = useMemo(() => (one.data ? layout(one.data) : null), [one.data]);
  const second = useMemo(() => (other.data ? layout(other.data) : null), [other.data]);
  const lines = first && second ? compare(first.rows, second.rows) : [];
  const to = Math.max(first?.to ?? 0, second?.to ?? 0);
  const sentence = one.data && other.data ? summary(one.data, other.data, lines) : "Two runs";

  usePage({
    title: "Compare runs",
    command: [`stageflow show ${state.id ?? ""}`, `stageflow show ${state.with ?? ""}`],
    sql: `SELECT pipeline_run_id, stage_name, status, duration_ms, queue_ms\nFROM stages\nWHERE pipeline_run_id IN ('${state.id ?? ""}', '${state.with ?? ""}')\nORDER BY stage_name, pipeline_run_id`,
    markdown: () =>
      section(
        `# ${sentence}`,
        table(
          ["stage", "first run", "second run", "difference"],
          lines.map((line) => [
            line.name,
            cell(line.one),
            cell(line.other),
            difference(line),
          ]),
        ),
      ),
  });

  if (!state.id || !state.with) {
    return (
      <Empty>
        <strong>Select two runs to compare.</strong>
        <Link to={viewAddress("runs")}>Open the list of runs</Link>
      </Empty>
    );
  }
  const open = (id: string) => (name: string) => go(viewAddress("run", { id, stage: name }));
  return (
    <div class="stack">
      <div class="headline">
        <h1>{sentence}</h1>
        <Link to={viewAddress("compare", { id: state.with, with: state.id })}>Swap</Link>
      </div>
      <div class="columns-2">
        {[
          { query: one, plan: first, id: state.id },
          { query: other, plan: second, id: state.with },
        ].map(({ query, plan, id }) => (
          <Panel
            key={id}
            title={
              <Link to={viewAddress("run", { id })}>
                {query.data
                  ? `${String(query.data.run.pipeline_name)} at ${time(String(query.data.run.started_at))}`
                  : id}
              </Link>
            }
            query={query}
            height={240}
            footer={
              query.data && <WaterfallLegend typical={Object.keys(query.data.typical_stages).length > 0} />
            }
          >
            {(details) =>
              plan ? (
                <Waterfall
                  layout={plan}
                  to={to}
                  typical={details.typical_stages}
                  selected={null}
                  onSelect={open(id)}
                />
              ) : null
            }
          </Panel>
        ))}
      </div>
      {one.data && other.data && (
        <>
          <section class="panel flush">
            <header>
              <h2>Stages, largest difference first</h2>
            </header>
            <div class="body">
              <table class="rows fixed" aria-label="Stages of both runs">
                <thead>
                  <tr>
                    <th scope="col">Stage</th>
                    <th scope="col" class="number">
                      First run
                    </th>
                    <th scope="col" class="number">
                      Second run
                    </th>
                    <th scope="col" class="number">
                      Difference
                    </th>
                  </tr>
                </thead>
                <tbody>
                  {lines.map((line) => (
                    <tr key={line.name}>
                      <td>{line.name}</td>
                      <td class="number">
                        <StageCell row={line.one} />
                      </td>
                      <td class="number">
                        <StageCell row={line.other} />
                      </td>
                      <td class="number">
                        {difference(line)}
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          </section>
          <Values
            one={flatten(one.data.run, first?.rows ?? [])}
            other={flatten(other.data.run, second?.rows ?? [])}
          />
        </>
      )}
    </div>
  );
}

function StageCell({ row }: { row: Row | undefined }): JSX.Element {
  if (!row) return <span class="muted">not in this run</span>;
  return (
    <>
      {row.status !== "OK" && <Mark status={row.status} />} {duration(took(row))}
      {row.attempts > 1 && <span class="muted small"> ({row.attempts} attempts)</span>}
    </>
  );
}

/** How long a stage ran; null if it did not run. */
function took(row: Row): number | null {
  return row.status === "SKIP" || row.status === "PENDING" ? null : row.duration;
}

function cell(row: Row | undefined): string {
  return row ? `${row.status} ${duration(took(row))}` : "not in this run";
}

function signed(ms: number): string {
  if (Math.abs(ms) < 0.001) return "0 ms";
  return `${ms > 0 ? "+" : "−"}${duration(Math.abs(ms))}`;
}

function compare(one: Row[], other: Row[]): Line[] {
  const stages = (rows: Row[]) => rows.filter((row) => row.child === null);
  const second = new Map(stages(other).map((row) => [row.name, row]));
  const names = new Set([...stages(one), ...stages(other)].map((row) => row.name));
  const first = new Map(stages(one).map((row) => [row.name, row]));
  return [...names]
    .map((name) => {
      const here = first.get(name);
      const there = second.get(name);
      const before = here ? took(here) : null;
      const after = there ? took(there) : null;
      const ran = before !== null || after !== null;
      const change = here && there && ran ? (after ?? 0) - (before ?? 0) : null;
      return { name, one: here, other: there, change };
    })
    .sort((a, b) => Math.abs(b.change ?? 0) - Math.abs(a.change ?? 0));
}

function summary(one: RunDetails, other: RunDetails, lines: Line[]): string {
  const total = (details: RunDetails) => Number(details.run.duration_ms ?? 0);
  const change = total(other) - total(one);
  const largest = lines[0];
  const stage =
    largest?.change && Math.sign(largest.change) === Math.sign(change) ? `, mostly ${reason(largest)}` : "";
  const others = [...missing(lines.filter((line) => line !== largest || !stage))]
    .map(([where, names]) => `; ${listed(names)} ${names.length > 1 ? "were" : "was"} ${where}`)
    .join("");
  return `First run ${outcome(one.run)} after ${duration(total(one))}, second run ${outcome(other.run)} after ${duration(total(other))}: ${signed(change)}${stage}${others}`;
}

/** "search (+3.4 s)", or that a stage ran in one of the runs only. */
function reason(line: Line): string {
  const where = notRun(line);
  if (!where) return `${line.name} (${signed(line.change ?? 0)})`;
  const ran = [line.one, line.other].map((row) => (row ? took(row) : null)).find((each) => each !== null);
  return `because ${line.name} was ${where} (${duration(ran)} in the ${line.one && took(line.one) !== null ? "first" : "second"})`;
}

/** "not reached in the second run"; null if the stage ran in both runs, or in none. */
function notRun({ one, other }: Line): string | null {
  const [before, after] = [one, other].map((row) => (row ? took(row) : null));
  if ((before === null) === (after === null)) return null;
  const row = before === null ? one : other;
  // A stage that is skipped because an earlier one failed has a reason such as "search failed".
  const isSkipped = row?.status === "SKIP" && !/ failed$/.test(row.note);
  const what = !row ? "missing in" : isSkipped ? "skipped in" : "not reached in";
  return `${what} the ${before === null ? "first" : "second"} run`;
}

/** "+3.4 s", or "not reached" for a stage that ran in one run only. */
function difference(line: Line): string {
  return notRun(line)?.replace(/ in the .*$/, "") ?? (line.change === null ? "–" : signed(line.change));
}

/** The stages that did not run, by where. */
function missing(lines: Line[]): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const line of lines) {
    const where = notRun(line);
    if (where) found.set(where, [...(found.get(where) ?? []), line.name]);
  }
  return found;
}

/** "a, b and c"; of many names, the first three. */
function listed(names: string[]): string {
  const shown = names.length > 4 ? [...names.slice(0, 3), plural(names.length - 3, "other stage")] : names;
  return shown.length > 1 ? `${shown.slice(0, -1).join(", ")} and ${shown[shown.length - 1]}` : (shown[0] ?? "");
}

type Fields = Map<string, unknown>;

/** The values that differ between the runs. */
function Values({ one: first, other: second }: { one: Fields; other: Fields }): JSX.Element {
  const names = [...new Set([...first.keys(), ...second.keys()])].filter(
    (name) => value(first.get(name)) !== value(second.get(name)),
  );
  return (
    <section class="panel flush">
      <header>
        <h2>Values that differ</h2>
      </header>
      <div class="body">
        {names.length === 0 ? (
          <Empty>The attributes, ids and versions of both runs are the same.</Empty>
        ) : (
          <table class="rows fixed" aria-label="Values that differ">
            <thead>
              <tr>
                <th scope="col">Field</th>
                <th scope="col">First run</th>
                <th scope="col">Second run</th>
              </tr>
            </thead>
            <tbody>
              {names.slice(0, 200).map((name) => (
                <tr key={name}>
                  <td>{name}</td>
                  {[first, second].map((values, index) => {
                    const each = values.get(name);
                    return (
                      <td key={index}>
                        <bdi>
                          {typeof each === "number" ? measured(name, each) : value(each).slice(0, 300)}
                        </bdi>
                      </td>
                    );
                  })}
                </tr>
              ))}
            </tbody>
          </table>
        )}
      </div>
    </section>
  );
}

const COMPARED = ["outcome", "error", "reason", "first_failed_stage"];
const NESTED = ["attributes", "correlation_ids", "resource", "pipeline_metadata"];

function flatten(run: Record_, rows: Row[]): Fields {
  const values = new Map<string, unknown>();
  for (const name of COMPARED) values.set(name, run[name]);
  for (const group of NESTED) {
    for (const [name, each] of Object.entries((run[group] as Record_ | null) ?? {})) {
      if (name !== "pipeline_run_id") values.set(group === "attributes" ? `attributes.${name}` : name, each);
    }
  }
  for (const row of rows.filter((each) => each.child === null)) {
    const record = row.records[row.records.length - 1];
    for (const [name, each] of Object.entries((record?.attributes as Record_ | null) ?? {}))
      values.set(`${row.name}/attributes.${name}`, each);
  }
  return values;
}
