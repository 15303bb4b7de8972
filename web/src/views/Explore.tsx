/** A number over time, and what is different about a selected region. */

import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import type {
  Completions,
  Differences as Compared,
  Explanation,
  Facet,
  Facets as Distributions,
  Heatmap as Map,
  Mark,
  Series,
} from "../api";
import { Heatmap, HeatmapLegend } from "../charts/Heatmap";
import { MarkLegend } from "../charts/Marks";
import { command } from "../command";
import { count, measured, NO_VALUE, percent, plural, shortTime, withTimes } from "../format";
import { scope, section, table } from "../markdown";
import { usePage } from "../page";
import { Differences } from "../parts/Differences";
import { Facets } from "../parts/Facets";
import { Headline } from "../parts/Headline";
import { NewestRun } from "../parts/NewestRun";
import { FieldOptions } from "../parts/FieldOptions";
import { Empty, Panel } from "../parts/Panel";
import { SeriesPanel, type Stat } from "../parts/SeriesPanel";
import { SqlDrawer } from "../parts/SqlDrawer";
import { and, type Box, boxPredicate, label, literal, parseBox, SAME_ERROR, splitTerms } from "../predicate";
import { useQuery } from "../query";
import { changed, go, Link, type Parameters, useParameters, viewAddress } from "../router";
import { savedPage } from "../saved";
import { followed } from "../stream";
import { absolute } from "../timerange";

/** The same on all screens: requests of several viewers share one execution, and saved pages contain it. */
const COLUMNS = 120;

export function Explore(): JSX.Element {
  const state = useParameters();
  const over = state.over === "stages" ? "stages" : "runs";
  const measure = state.measure ?? "duration_ms";
  const colour = state.colour === "failures" ? "failures" : "count";
  const select = state.select ?? "";
  const against = select ? state.against : undefined;
  const range = { where: state.where, since: state.since, until: state.until, over: state.over };
  const grid = { measure, columns: COLUMNS, rows: 40 };

  const [hovered, setHovered] = useState<string | null>(null);
  const highlighted = useDelayed(hovered, 120);
  // The row under the pointer may disappear with the selection, and then does not report that the pointer left.
  useEffect(() => setHovered(null), [select, state.where]);

  // While a selection is being read or drawn, the charts stay as they are.
  const [inUse, setInUse] = useState(false);
  const follow = select || inUse ? null : followed;
  // The slowest query starts first.
  const compared = useQuery<Compared>("differences", select ? "api/differences" : null, {
    ...range,
    select,
    against,
  });
  const map = useQuery<Map>("heatmap", "api/heatmap", { ...range, ...grid, select }, follow);
  // The groups of a field are those of all rows.
  const parts = state.by || !select ? {} : { select, against };
  const series = useQuery<Series>("series", "api/series", { ...range, by: state.by, steps: COLUMNS, ...parts }, follow);
  const facets = useQuery<Distributions>("facets", "api/facets", { ...range, select, against });
  const highlight = useQuery<Map>("highlight", highlighted && !savedPage ? "api/heatmap" : null, {
    ...range,
    ...grid,
    select: highlighted ?? "",
  });
  const fields = useQuery<Completions>("explore-fields", "api/complete", { over: state.over });

  const explanation = select && !compared.stale ? (compared.data?.explanation ?? null) : null;
  const marks = useMemo(() => marksOf(series.data, explanation), [series.data, explanation]);

  const box = map.data && select ? parseBox(select, map.data.measure_sql) : null;
  const stale = map.stale || (select !== "" && (facets.stale || compared.stale));
  const sentence = describe(
    map.data,
    facets.stale ? null : facets.data,
    compared.stale ? null : compared.data,
    select,
    box,
    measure,
    Boolean(against),
  );

  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.key === "Escape" && select && !target.closest("input, textarea, select, .menu, .heatmap"))
        clearSelection();
    };
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, [select]);

  usePage({
    title: "Explore",
    command:
      compared.data?.command ??
      (over === "stages"
        ? command("stats", state, "--over", "stages")
        : explainCommand(state, select)),
    sql: rowsSql(over, state, select),
    markdown: () => markdown(sentence, state, compared.data, facets.data),
  });

  const choose = (next: Box | null) => {
    if (map.data) go(selected(next ? boxPredicate(next, map.data.measure_sql) : ""));
  };

  return (
    <div class="stack">
      <Headline text={sentence} stale={stale}>
        {select && (
          <span class="row">
            {over === "runs" && (
              <Link to={viewAddress("runs", { where: and(state.where, select) })}>
                Show the selected runs
              </Link>
            )}
            {!savedPage && (
              <button type="button" onClick={clearSelection}>
                Clear selection
              </button>
            )}
          </span>
        )}
      </Headline>
      <Panel
        title={`${measure} of ${over}${map.data?.log ? ", log scale" : ""}`}
        query={map}
        height={300}
        actions={
          <HeatmapControls state={state} over={over} measure={measure} fields={fields.data} map={map.data} />
        }
        footer={
          map.data &&
          map.data.cells.length > 0 && (
            <>
              <HeatmapLegend
                data={map.data}
                colour={colour}
                selecting={select !== ""}
                highlighting={highlighted !== null}
              />
              {map.data.missing > 0 && (
                <span>
                  {count(map.data.missing)} {over} without {measure} are not shown
                </span>
              )}
              <MarkLegend
                marks={marks}
                since={Date.parse(map.data.since)}
                until={Date.parse(map.data.since) + map.data.columns * map.data.step_s * 1000}
              />
              {map.data.estimated && <span>≈ counts are estimates, because runs were sampled</span>}
            </>
          )
        }
      >
        {(data) =>
          data.cells.length ? (
            <Heatmap
              data={data}
              colour={colour}
              box={box}
              selecting={select !== ""}
              highlight={highlighted ? highlight.data : null}
              marks={marks}
              onBox={choose}
              onUse={setInUse}
            />
          ) : (
            <Empty>
              <strong>
                No {over} with {measure}{" "}
                {state.where || state.since || state.until
                  ? "match the filter and the time range"
                  : "were recorded yet"}
                .
              </strong>
              {(state.since || state.until) && <NewestRun />}
              {(state.where || state.since || state.until) && (
                <button
                  type="button"
                  onClick={() => go(selected("", { where: "", since: "", until: "" }))}
                >
                  Show everything
                </button>
              )}
            </Empty>
          )
        }
      </Panel>
      {select ? (
        <Panel title="What is different about the selection" query={compared} height={240}>
          {(data) => <Differences explanation={data.explanation} onHover={setHovered} />}
        </Panel>
      ) : (
        map.data &&
        map.data.cells.length > 0 &&
        !savedPage && <Suggestions map={map.data} measure={measure} />
      )}
      <Panel
        title={
          select ? (
            <>
              Distributions: <span class="key-selection">selection</span> and{" "}
              <span class="key-rest">{against ? "the rest from the same time" : "the rest"}</span>
            </>
          ) : (
            "Distributions"
          )
        }
        query={facets}
        height={360}
      >
        {(data) =>
          data.fields.length ? (
            <Facets data={data} select={select} explanation={explanation} />
          ) : (
            <Empty>No field has values.</Empty>
          )
        }
      </Panel>
      <SeriesPanel
        query={series}
        fields={fields.data?.suggestions ?? []}
        preset={presetOf(measure, colour)}
        marks={marks}
      />
      <SqlDrawer sql={rowsSql(over, state, select)} />
    </div>
  );
}

type ControlProperties = {
  state: Parameters;
  over: string;
  measure: string;
  fields: Completions | null;
  map: Map | null;
};

function HeatmapControls({ state, over, measure, fields, map }: ControlProperties): JSX.Element {
  const numbers = (fields?.suggestions ?? []).filter((each) => each.type === "number");
  const isKnown = numbers.some((each) => each.text === measure);
  return (
    <>
      <label class="control">
        measure
        <select
          value={measure}
          disabled={Boolean(savedPage)}
          onChange={(event) => go(selected("", { measure: event.currentTarget.value }))}
        >
          {!isKnown && <option value={measure}>{measure}</option>}
          <FieldOptions fields={numbers} />
        </select>
      </label>
      <label class="control">
        of
        <select
          value={over}
          disabled={Boolean(savedPage)}
          onChange={(event) =>
            go(
              selected("", {
                over: event.currentTarget.value === "stages" ? "stages" : "",
                by: "",
                where: "",
              }),
            )
          }
        >
          <option>runs</option>
          <option>stages</option>
        </select>
      </label>
      <label class="control">
        color
        <select
          value={state.colour ?? "count"}
          disabled={!map}
          onChange={(event) => go(changed({ colour: event.currentTarget.value }), { replace: true })}
        >
          <option value="count">count</option>
          <option value="failures">failure rate</option>
        </select>
      </label>
    </>
  );
}

/** The command that explains the selection; without one, the failures. */
function explainCommand({ where, since, until }: Parameters, select: string): string {
  const within = where ? ["--within", where] : [];
  return command("explain", { since: since ?? "", until: until ?? "" }, ...(select ? [select] : []), ...within);
}

/** What to do without a selection. */
function Suggestions({ map, measure }: { map: Map; measure: string }): JSX.Element {
  const threshold = slowest(map);
  const failed = map.cells.reduce((total, cell) => total + cell[3], 0);
  return (
    <div class="suggest">
      <span>Drag over a region to see how it differs from the rest, or select</span>
      {failed > 0 && (
        <button type="button" onClick={() => go(selected("failed"))}>
          {failed === 1 ? "the failure" : `the ${count(failed)} failures`}
        </button>
      )}
      {threshold !== null && (
        <button type="button" onClick={() => go(selected(`${map.measure_sql} >= ${threshold}`))}>
          the highest 5% (≥ {measured(measure, threshold)})
        </button>
      )}
    </div>
  );
}

/** Return the edge above which about 5% of the rows are. */
function slowest(map: Map): number | null {
  const rows = new Array<number>(map.edges.length - 1).fill(0);
  for (const [, y, here] of map.cells) rows[y] = (rows[y] ?? 0) + here;
  let above = 0;
  for (let y = rows.length - 1; y > 0; y -= 1) {
    above += rows[y] as number;
    if (above >= map.count * 0.04) return above <= map.count * 0.2 ? (map.edges[y] as number) : null;
  }
  return null;
}

function failureShares(facets: Distributions | null): [number, number] | null {
  const field: Facet | undefined = facets?.fields.find((each) => each.field === "failed");
  if (!facets || !field) return null;
  const failed = field.values.find((each) => each.value === "true");
  const shares = (total: number, missing: number, found: number) =>
    total > missing ? found / (total - missing) : 0;
  return [
    shares(facets.selection, field.missing[0], failed?.selection ?? 0),
    shares(facets.rest, field.missing[1], failed?.rest ?? 0),
  ];
}

/** The first sentence of the view. */
function describe(
  map: Map | null,
  facets: Distributions | null,
  compared: Compared | null,
  select: string,
  box: Box | null,
  measure: string,
  against: boolean,
): string {
  if (!map) return "Explore";
  if (map.count === 0) return `No ${map.over} match`;
  if (!select) {
    const failed = map.cells.reduce((total, cell) => total + cell[3], 0);
    return `${plural(map.count, map.over === "runs" ? "run" : "stage")}, ${percent(failed / map.count)} failed`;
  }
  const parts: string[] = [];
  if (box) {
    parts.push(
      `${shortTime(box.from)} to ${shortTime(box.to)}, ${measured(measure, box.low)} to ${measured(measure, box.high)}`,
    );
  } else if (select !== "failed")
    parts.push(compared?.explanation.described ?? titleOf(select, facets));
  if (facets && facets.rest > 0) {
    const what = select === "failed" ? "failed" : "selected";
    parts.push(`${count(facets.selection)} of ${count(facets.selection + facets.rest)} ${map.over} ${what}`);
    const failed = facets.selection > 0 ? failureShares(facets) : null;
    if (failed && select !== "failed")
      parts.push(`${percent(failed[0])} failed, compared with ${percent(failed[1])} of the others${against ? " from the same time" : ""}`);
  }
  if (compared && (select === "failed" || parts.length < 3))
    parts.push(withTimes(compared.explanation.summary));
  return parts.join(" · ") || "Explore";
}

/** Return the selection in words, with the type of the error instead of its fingerprint. */
function titleOf(select: string, facets: Distributions | null): string {
  const types = facets?.fields.find((each) => each.field === "error_type")?.values ?? [];
  const [found, ...others] = types.filter((each) => each.value !== null && each.selection > 0);
  const words = withTimes(splitTerms(select).map(label).join(", "));
  return found?.value && others.length === 0 ? words.replace(SAME_ERROR, found.value) : words;
}

/** The marks of the time range, and the time since which the selected rows are more frequent. */
function marksOf(series: Series | null, explanation: Explanation | null): Mark[] {
  const marks = series?.marks ?? [];
  if (!explanation?.onset) return marks;
  const label = `more ${explanation.selected_are}`;
  return [...marks, { at: explanation.onset, until: null, kind: "onset", label, where: null }];
}

/** Return the address of another selection, which is compared with all other rows. */
function selected(select: string, changes: Parameters = {}): string {
  return changed({ ...changes, select, against: "" });
}

function clearSelection(): void {
  go(selected(""));
}

/** What the chart over time shows at first: what the heatmap shows. */
function presetOf(measure: string, colour: "count" | "failures"): Stat {
  return measure.endsWith("duration_ms") && colour === "count" ? "p95_ms" : "failure_rate";
}

/** A query for the rows that are selected, or for all rows of the view. */
function rowsSql(over: string, state: Parameters, select: string): string {
  const since = absolute(state.since);
  const until = absolute(state.until);
  const conditions = [
    since && `started_at >= ${literal(since)}`,
    until && `started_at < ${literal(until)}`,
    state.where && `(${state.where})`,
    select && `(${select})`,
  ].filter(Boolean);
  const where = conditions.length ? `\nWHERE ${conditions.join("\n  AND ")}` : "";
  return `SELECT *\nFROM ${over}${where}\nORDER BY started_at DESC\nLIMIT 100`;
}

function useDelayed<T>(value: T, ms: number): T {
  const [delayed, setDelayed] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setDelayed(value), ms);
    return () => clearTimeout(timer);
  }, [value, ms]);
  return delayed;
}

function markdown(
  sentence: string,
  state: Parameters,
  compared: Compared | null,
  facets: Distributions | null,
): string {
  const fields = facets?.fields.slice(0, 8) ?? [];
  const compares = facets !== null && facets.rest > 0;
  return section(
    compared ? "# What is different about the selection" : `# ${sentence}`,
    scope(state),
    compared && compared.markdown,
    facets &&
      table(
        ["field", `most frequent values${compares ? " (selection / rest)" : ""}`],
        fields.map((facet) => [
          facet.field,
          facet.kind === "values"
            ? facet.values
                .slice(0, 4)
                .map(
                  (each) =>
                    `${each.value ?? NO_VALUE} ${percent(each.selection / (facets.selection || 1))}` +
                    (compares ? ` / ${percent(each.rest / facets.rest)}` : ""),
                )
                .join(", ")
            : `${measured(facet.field, facet.bins[0]?.low)} to ${measured(facet.field, facet.bins[facet.bins.length - 1]?.high)}`,
        ]),
      ),
  );
}
