/** What is different about a selection: ranked conditions, where the difference is, and what changed. */

import type { JSX } from "preact";
import type { Change, Difference, Explanation, Location, SameTime } from "../api";
import { Ago } from "../clock";
import { about, count, duration, number, percent, plural, qValue, shortTime, time, withTimes } from "../format";
import { and, identifier, literal } from "../predicate";
import { changed, go, Link, parameters, viewAddress } from "../router";
import { copy } from "../clipboard";
import { FieldMenu } from "./FieldMenu";
import { Info } from "./Info";
import { Empty } from "./Panel";

type Properties = {
  explanation: Explanation;
  onHover: (condition: string | null) => void;
};

export function Differences({ explanation, onHover }: Properties): JSX.Element {
  const { differences, effects, locations, changes, limitations, left_out: leftOut } = explanation;
  return (
    <div class="stack differences">
      {explanation.same_time && <TimeNotice sameTime={explanation.same_time} explanation={explanation} />}
      {parameters.value.against && <AgainstNotice explanation={explanation} />}
      {differences.length ? (
        <DifferenceTable
          rows={differences}
          explanation={explanation}
          label="Differences"
          onHover={onHover}
        />
      ) : (
        <NoDifference explanation={explanation} />
      )}
      {locations.length > 0 && (
        <div>
          <h3>Where</h3>
          <ul class="plain-list">
            {locations.slice(0, 5).map((location, index) => (
              <li key={index}>
                <LocationText location={location} explanation={explanation} />
              </li>
            ))}
          </ul>
        </div>
      )}
      {changes.length > 0 && (
        <div>
          <h3>First occurred shortly before</h3>
          <ul class="plain-list">
            {changes.slice(0, 8).map((change) => (
              <li key={change.field + change.value}>
                <ChangeText change={change} />
              </li>
            ))}
          </ul>
        </div>
      )}
      {effects.length > 0 && (
        <details>
          <summary>
            Likely effects, not causes ({effects.length}):{" "}
            {effects
              .slice(0, 2)
              .map((each) => withTimes(each.description))
              .join("; ")}
            {effects.length > 2 ? "; …" : ""}
          </summary>
          <DifferenceTable
            rows={effects}
            explanation={explanation}
            label="Likely effects"
            onHover={onHover}
          />
        </details>
      )}
      <details class="muted">
        <summary>
          Compared {plural(explanation.fields, "field")} in {plural(explanation.comparisons, "comparison")};
          differences with a chance (q) of at most {percent(explanation.alpha)} are shown
          {limitations.length ? `; ${plural(limitations.length, "limitation")}` : ""}
        </summary>
        <ul class="plain-list">
          {limitations.map((text) => (
            <li key={text}>{text}</li>
          ))}
          {explanation.selection_compared < explanation.selection.rows ||
          explanation.rest_compared < explanation.rest.rows ? (
            <li>
              Numbers and combinations were compared in a sample of {count(explanation.selection_compared)}{" "}
              and {count(explanation.rest_compared)} rows; values in all rows.
            </li>
          ) : null}
          {explanation.cluster && (
            <li>
              Rows with the same {explanation.cluster} depend on each other (design effect{" "}
              {number(explanation.design_effect)}).
            </li>
          )}
          {leftOut.map((each) => (
            <li key={each.reason}>
              Not compared ({each.reason}): {each.fields.join(", ")}
            </li>
          ))}
        </ul>
      </details>
    </div>
  );
}

type TableProperties = Properties & { rows: Difference[]; label: string };

function DifferenceTable({ rows, explanation, label, onHover }: TableProperties): JSX.Element {
  const rate = rateName(explanation);
  const are = { Failed: "failed", Slow: "are slow", Selected: "are selected" }[rate];
  const noun = explanation.over;
  const meaning = `The share of the ${noun} that match the condition and ${are}, and the share of all other ${noun} that ${are}.`;
  const slow = rows.some((row) => row.p50_ms !== null);
  return (
    <table class="rows difference-table" aria-label={label}>
      <thead>
        <tr>
          <th scope="col" class="number narrow">
            #
          </th>
          <th scope="col">Condition</th>
          <th scope="col" class="share">
            Of the selection
          </th>
          <th scope="col" class="share">
            Of the rest
          </th>
          <th scope="col" class="number medium-only">
            <Info text={meaning}>{rate}: matching / other</Info>
          </th>
          {slow && (
            <th scope="col" class="number wide-only">
              <Info text="The median duration of the rows that match the condition, and of all other rows.">
                p50: matching / other
              </Info>
            </th>
          )}
          <th scope="col" class="number wide-only">
            <Info text="How many times as frequent the condition is in the selection as in the rest (the lift). ∞: no row of the rest meets it.">
              Times as frequent
            </Info>
          </th>
          <th scope="col" class="number medium-only">
            <Info text="How likely it is that the difference is due to chance: among all conditions with this value (q) or a smaller one, at most this share is expected to be a coincidence. It is a p-value, corrected for the number of comparisons.">
              Chance (q)
            </Info>
          </th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row, index) => (
          <tr
            key={row.description}
            // A row that moves below the pointer is not meant: the pointer itself has to move.
            onPointerMove={(event) => (event.movementX || event.movementY) && onHover(row.condition)}
            onPointerLeave={() => onHover(null)}
            onFocusCapture={(event) =>
              (event.target as HTMLElement).matches(":focus-visible") && onHover(row.condition)
            }
            onBlurCapture={() => onHover(null)}
          >
            <td class="number narrow muted">{index + 1}</td>
            <td>
              <FieldMenu
                where={row.condition}
                field={row.fields[0] ?? null}
                label={<bdi>{withTimes(row.description)}</bdi>}
                more={[
                  { label: "Copy as SQL", run: () => void copy(row.sql, "the query") },
                  ...(row.run_ids[0]
                    ? [{ label: "Open an example", to: viewAddress("run", { id: row.run_ids[0] }) }]
                    : []),
                ]}
              />
              {/* A narrow window has no columns for these. */}
              <div class="small small-only">
                {percent(row.rate)} of the matching {noun} {are}, {percent(row.other_rate)} of the others;
                chance (q) {qValue(row.q_value)}
              </div>
              <div class="small muted">{remarks(row, index, rows, explanation)}</div>
            </td>
            <td class="share" data-label="Selection">
              <Bar share={row.selection.share} kind="selection" />
              <span class="small">
                {percent(row.selection.share)} <span class="muted">({count(row.selection.count)})</span>
              </span>
            </td>
            <td class="share" data-label="Rest">
              <Bar share={row.rest.share} kind="rest" />
              <span class="small">
                {percent(row.rest.share)} <span class="muted">({count(row.rest.count)})</span>
              </span>
            </td>
            <td class="number medium-only">
              <strong>{percent(row.rate)}</strong> / {percent(row.other_rate)}
            </td>
            {slow && (
              <td class="number wide-only">
                {duration(row.p50_ms)} / {duration(row.other_p50_ms)}
              </td>
            )}
            <td class="number wide-only">
              {row.lift === null ? "∞" : `× ${number(Number(row.lift.toPrecision(2)))}`}
            </td>
            <td class="number medium-only">{qValue(row.q_value)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function rateName({ selected_are }: Explanation): "Failed" | "Slow" | "Selected" {
  if (selected_are === "failures") return "Failed";
  return selected_are.startsWith("slow") ? "Slow" : "Selected";
}

/** A warning: the selection has a value only because of its time. */
function TimeNotice({
  sameTime,
  explanation,
}: {
  sameTime: SameTime;
  explanation: Explanation;
}): JSX.Element | null {
  const { since, until, count: others } = sameTime;
  const noun = explanation.over;
  const bound = explanation.differences.filter((each) => each.same_time_share !== null);
  if (!bound.length) return null;
  const share = Math.min(...bound.map((each) => each.same_time_share ?? 1));
  const conditions = bound.map((each) => each.description);
  return (
    <div class="time-notice" role="note">
      <span>
        <strong>
          The time of the selection may explain <bdi>{withTimes(conditions.join(", "))}</bdi>.
        </strong>{" "}
        {share === 1 ? "All" : percent(share)} of the {count(others)} other {noun} from {shortTime(since)} to{" "}
        {shortTime(until)} match {conditions.length === 1 ? "it" : "this"} too.
      </span>
      <button
        type="button"
        onClick={() => go(changed({ against: sameTime.against }))}
      >
        Compare with the {noun} from the same time
      </button>
    </div>
  );
}

/** What the selection is compared with, if it is not compared with all other rows. */
function AgainstNotice({ explanation }: { explanation: Explanation }): JSX.Element {
  return (
    <div class="time-notice neutral" role="note">
      <span>
        Compared with the {count(explanation.rest.count)} other {explanation.over} from the same time.
      </span>
      <button type="button" onClick={() => go(changed({ against: "" }))}>
        Compare with all other {explanation.over}
      </button>
    </div>
  );
}

function Bar({ share, kind }: { share: number; kind: "selection" | "rest" }): JSX.Element {
  return (
    <span class={`bar ${kind}`} aria-hidden="true">
      <i style={{ width: `${Math.max(share * 100, share > 0 ? 1 : 0)}%` }} />
    </span>
  );
}

/** "sessions" for `session_id`. */
function unitsOf(explanation: Explanation): string {
  const noun = explanation.cluster?.replace(/_id$/, "").replaceAll("_", " ");
  return noun ? `${noun}s` : "independent rows";
}

/** The verdict on a difference, its extent, and conditions that match the same rows. */
function remarks(
  row: Difference,
  index: number,
  rows: Difference[],
  explanation: Explanation,
): string {
  const unit = unitsOf(explanation);
  // An earlier row is named by its number.
  const named = (description: string | null) => {
    const at = rows.findIndex((each) => each.description === description);
    return at >= 0 && at !== index ? `row ${at + 1}` : (description ?? "");
  };
  const other = named(row.relates_to);
  const verdict = {
    independent: "",
    remains: `remains after controlling for ${other}`,
    explained: `explained by ${other}`,
    inseparable: `cannot be separated from ${other} (they occur together)`,
  }[row.verdict];
  const extent = [
    row.clusters > 1 && `${count(row.clusters)} ${unit}`,
    row.users !== null && row.users > 0 && plural(row.users, "user"),
    row.excess >= 1 &&
      row.verdict !== "explained" &&
      row.verdict !== "inseparable" &&
      `${count(row.excess)} more than expected (95% interval ${count(row.excess_low)} to ${count(row.excess_high)})`,
  ].filter(Boolean);
  const same = row.synonyms.length
    ? `same rows: ${row.synonyms.slice(0, 3).join(", ")}${row.synonyms.length > 3 ? ` and ${row.synonyms.length - 3} more` : ""}`
    : "";
  const share = row.same_time_share;
  const texts = [
    share !== null &&
      `due to the time: ${share === 1 ? "all" : `${percent(share)} of the`} other ${explanation.over} from that time also match`,
    verdict,
    row.varies && `its effect depends on whether ${named(row.varies)} matches too`,
    extent.join(", "),
    same,
  ];
  return withTimes(texts.filter(Boolean).join(" · "));
}

function LocationText({
  location,
  explanation,
}: {
  location: Location;
  explanation: Explanation;
}): JSX.Element {
  const isFailures = explanation.selected_are === "failures";
  const failures = isFailures ? "the failures" : `the selected ${explanation.over}`;
  const all = isFailures ? failures : "the selection";
  // A sentence states one share: of the rows that match the first difference, if that is another one.
  const differs = location.cause_share !== null && Math.abs(location.cause_share - location.share) >= 0.05;
  const share = differs && location.cause_share !== null ? location.cause_share : location.share;
  const where = location.fingerprint ? `error_fingerprint = ${literal(location.fingerprint)}` : null;
  if (location.what === "failed") {
    const text = `${location.stage ?? "the run"} failed with ${location.error_type ?? "an error"}`;
    return (
      <>
        {where ? (
          <Link to={viewAddress("runs", { where: and(parameters.value.where, where) })}>{text}</Link>
        ) : (
          text
        )}
        : {about(share)} of {differs ? `${failures} that match row 1` : all}
      </>
    );
  }
  const what = { ran: "took", waited: "waited", retried: "was retried for" }[location.what];
  return (
    <>
      <strong>{location.stage ?? "time outside the stages"}</strong> {what} {duration(location.ms)}, compared
      with {duration(location.other_ms)} on average: {about(share)} of the additional time
      {differs && ` of the ${explanation.over} that match row 1`}
    </>
  );
}

function ChangeText({ change }: { change: Change }): JSX.Element {
  return (
    <>
      <FieldMenu
        where={`${identifier(change.field)} = ${literal(change.value)}`}
        field={change.field}
        label={`${change.field} = ${change.value}`}
      />
      , first <Ago at={change.first_at} /> ({duration(Math.abs(change.before_onset_s) * 1000)}{" "}
      {change.before_onset_s < 0 ? "after" : "before"} the onset); {percent(change.selection.share)} of the
      selection, {percent(change.rest.share)} of the rest
    </>
  );
}

function NoDifference({ explanation }: { explanation: Explanation }): JSX.Element {
  return (
    <Empty>
      <strong>{withTimes(explanation.summary)}</strong>
      <span>
        {explanation.onset ? `The selection became more frequent at ${time(explanation.onset)}. ` : ""}
        Select more rows, or rows that have more in common.
      </span>
    </Empty>
  );
}
