/** The distributions of the fields, as small bars: the selection compared with the rest. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Bin, Explanation, Facet, Facets as Data } from "../api";
import { compact, count, measured, NO_VALUE, percent, plural } from "../format";
import { identifier } from "../predicate";
import { FieldMenu } from "./FieldMenu";
import { Middle } from "./Middle";

const FIRST = 12;

/** Fields that contain how a run or a stage ended. */
const RESULTS = new Set(
  (
    "error error_fingerprint error_type failed first_failed_stage outcome reason status" +
    " stages_cancelled stages_completed stages_failed stages_skipped"
  ).split(" "),
);

type Properties = {
  data: Data;
  select: string;
  /** How the selection differs; null while it is loading, and without a selection. */
  explanation: Explanation | null;
};

export function Facets({ data, select, explanation }: Properties): JSX.Element {
  const [all, setAll] = useState(false);
  const [wanted, setWanted] = useState("");
  // A field with one value in all rows says nothing.
  const constant = data.fields.filter((each) => isConstant(each));
  // If rows are selected by how they ended, it is expected that these fields differ.
  const byResult = /\b(failed|outcome|status|error\w*)\b/.test(select);
  const isLast = (each: Facet) => Number(byResult && RESULTS.has(each.field));
  const varying = data.fields
    .filter((each) => !isConstant(each))
    .sort((one, other) => isLast(one) - isLast(other));
  const matching = wanted
    ? data.fields.filter((each) => each.field.toLowerCase().includes(wanted.toLowerCase()))
    : varying;
  const fields = all || wanted ? matching : matching.slice(0, FIRST);
  return (
    <>
      {data.fields.length > FIRST && (
        <div class="facet-controls">
          <input
            value={wanted}
            aria-label="Search fields"
            placeholder="Search fields"
            onInput={(event) => setWanted(event.currentTarget.value)}
          />
          {data.sampled !== null && (
            <span class="muted small">from a sample of {count(data.sampled)} rows</span>
          )}
        </div>
      )}
      <div class="facets">
        {fields.map((facet) => (
          <FacetCard key={facet.field} facet={facet} data={data} badge={badgeOf(facet.field, explanation)} />
        ))}
      </div>
      {!wanted && varying.length > FIRST && (
        <p class="after">
          <button type="button" onClick={() => setAll(!all)}>
            {all ? "Show fewer fields" : `Show all ${count(varying.length)} fields`}
          </button>
        </p>
      )}
      {constant.length > 0 && (
        <details class="muted after">
          <summary>{plural(constant.length, "field")} with the same value in all rows</summary>
          {constant.map((each) => `${each.field} = ${constantValue(each)}`).join(", ")}
        </details>
      )}
      {data.left_out.length > 0 && (
        <details class="muted after">
          <summary>
            {plural(data.left_out.length, "field")} not shown, because almost every row has another value
          </summary>
          {data.left_out.join(", ")}
        </details>
      )}
    </>
  );
}

function isConstant(facet: Facet): boolean {
  return (
    facet.values.length + facet.bins.length <= 1 &&
    facet.missing[0] + facet.missing[1] + facet.other[0] + facet.other[1] === 0
  );
}

function constantValue(facet: Facet): string {
  return facet.values[0]?.value ?? measured(facet.field, facet.bins[0]?.low);
}

type Badge = "differs" | "likely effect" | null;

/** Return what the comparison found out about a field, so that the distributions never contradict it. */
function badgeOf(field: string, explanation: Explanation | null): Badge {
  const isIn = (rows: Explanation["differences"]) =>
    rows.some(
      (row) => row.fields.includes(field) || row.synonyms.some((each) => each.startsWith(`${field} `)),
    );
  if (!explanation) return null;
  return isIn(explanation.differences) ? "differs" : isIn(explanation.effects) ? "likely effect" : null;
}

/** Number of characters from which a value needs the width of two fields. */
const LONG = 24;

function FacetCard({ facet, data, badge }: { facet: Facet; data: Data; badge: Badge }): JSX.Element {
  const isLong = facet.values.some(({ value }) => (value?.length ?? 0) >= LONG);
  return (
    <section class={`facet ${isLong ? "long" : ""}`} aria-label={facet.field}>
      <h3>
        <FieldMenu
          where={`${identifier(facet.field)} IS NOT NULL`}
          field={facet.field}
          label={<Middle text={facet.field} title={false} />}
          title={facet.field}
        />
        {badge && <span class={`badge ${badge === "differs" ? "differs" : ""}`}>{badge}</span>}
      </h3>
      {facet.kind === "values" ? <Values facet={facet} data={data} /> : <Numbers facet={facet} data={data} />}
    </section>
  );
}

function share(value: number, total: number): number {
  return total > 0 ? value / total : 0;
}

function Values({ facet, data }: { facet: Facet; data: Data }): JSX.Element {
  const compared = data.rest > 0;
  const other =
    facet.other[0] + facet.other[1] > 0
      ? [{ value: "other values", where: "", selection: facet.other[0], rest: facet.other[1] }]
      : [];
  const missing = facet.missing[0] + facet.missing[1] > 0 ? facet.missing : null;
  const named = facet.values.some((each) => each.value === null);
  const rows = [
    ...facet.values,
    ...other,
    ...(missing && !named
      ? [
          {
            value: null,
            where: `${identifier(facet.field)} IS NULL`,
            selection: missing[0],
            rest: missing[1],
          },
        ]
      : []),
  ];
  return (
    <ul class="values">
      {rows.map((row) => {
        const name = row.value === null ? NO_VALUE : row.value === "" ? "(empty)" : row.value;
        const selected = share(row.selection, data.selection);
        const others = share(row.rest, data.rest);
        const text = compared ? `${percent(selected)} / ${percent(others)}` : percent(selected);
        const title = compared
          ? `${name}: ${count(row.selection)} of the selection (${percent(selected)}), ${count(row.rest)} of the rest (${percent(others)})`
          : `${name}: ${count(row.selection)} (${percent(selected)})`;
        const label = (
          <span class="value-row">
            <span class={`name ${row.value === null || !row.where ? "muted" : ""}`}>
              <Middle text={name} title={false} />
            </span>
            <span class="number small">{text}</span>
            <span class="pair" aria-hidden="true">
              <i class={selected > 0 ? "selection" : ""} style={{ width: `${selected * 100}%` }} />
              {compared && <i class={others > 0 ? "rest" : ""} style={{ width: `${others * 100}%` }} />}
            </span>
          </span>
        );
        return (
          <li key={String(row.value)}>
            {row.where ? (
              <FieldMenu class="value" where={row.where} field={facet.field} label={label} title={title} />
            ) : (
              <span title={title}>{label}</span>
            )}
          </li>
        );
      })}
    </ul>
  );
}

function Numbers({ facet, data }: { facet: Facet; data: Data }): JSX.Element {
  const compared = data.rest > 0;
  const shares = facet.bins.map(
    (bin) => [share(bin.selection, data.selection), share(bin.rest, data.rest)] as const,
  );
  const most = Math.max(...shares.flat(), 1e-9);
  const low = facet.bins[0]?.low;
  const high = facet.bins[facet.bins.length - 1]?.high;
  const missing = facet.missing[0] + facet.missing[1];
  return (
    <>
      <div class="histogram">
        {facet.bins.map((bin, index) => {
          const [selected, others] = shares[index] as readonly [number, number];
          const title = `${interval(facet.field, bin)}: ${count(bin.selection)} (${percent(selected)})${compared ? `, rest ${count(bin.rest)} (${percent(others)})` : ""}`;
          return (
            <FieldMenu
              key={bin.low}
              class="bin"
              where={bin.where}
              field={null}
              name={title}
              title={title}
              label={
                <>
                  <i class="selection" style={{ height: `${(selected / most) * 100}%` }} />
                  {compared && <i class="rest" style={{ height: `${(others / most) * 100}%` }} />}
                </>
              }
            />
          );
        })}
      </div>
      <div class="ends small muted">
        <span>{measured(facet.field, low)}</span>
        {missing > 0 && <span>{compact(missing)} without a value</span>}
        <span>{measured(facet.field, high)}</span>
      </div>
    </>
  );
}

function interval(field: string, bin: Bin): string {
  return bin.low === bin.high
    ? measured(field, bin.low)
    : `${measured(field, bin.low)} to ${measured(field, bin.high)}`;
}
