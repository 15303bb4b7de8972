/** The time range in the top bar. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { shortTime, time, zoneName } from "../format";
import { changed, go, useParameters } from "../router";
import { savedPage } from "../saved";
import { zone } from "../settings";
import { useStore } from "../store";
import { absolute, PRESETS, relativeMs } from "../timerange";
import { Icon } from "../icons";
import { Menu } from "./Menu";

export function rangeLabel(since: string | undefined, until: string | undefined): string {
  if (!until) {
    const preset = PRESETS.find(([value]) => value === (since ?? ""));
    if (preset) return preset[1];
    return since && relativeMs(since) === null ? `Since ${at(since)}` : `Last ${since}`;
  }
  return `${since ? at(since) : "start"} to ${at(until)}`;
}

function at(text: string): string {
  if (relativeMs(text) !== null) return `${text} ago`;
  return Number.isNaN(Date.parse(text)) ? text : shortTime(text);
}

export function TimeRange(): JSX.Element {
  const { since, until } = useParameters();
  useStore(zone);
  const label = rangeLabel(since, until);
  if (savedPage) return <span class="muted">{`${label}, ${zoneName()}`}</span>;
  return (
    <Menu
      name={`Time range: ${label}`}
      title={`Times are in ${zoneName()}`}
      label={
        <>
          <span>{label}</span> <span class="muted">{zoneName()}</span>
          <Icon name="menu" />
        </>
      }
      items={PRESETS.map(([value, text]) => ({
        label: text,
        checked: !until && (since ?? "") === value,
        run: () => go(changed({ since: value, until: "", before: "" })),
      }))}
      form={(close) => <Custom since={since ?? ""} until={until ?? ""} close={close} />}
    />
  );
}

function Custom({ since, until, close }: { since: string; until: string; close: () => void }): JSX.Element {
  const [problem, setProblem] = useState<{ name: string; text: string } | null>(null);
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const fields = new FormData(event.currentTarget as HTMLFormElement);
    const range = { since: "", until: "" };
    for (const name of ["since", "until"] as const) {
      const typed = String(fields.get(name) ?? "").trim();
      const found = normal(typed);
      if (found === null) {
        setProblem({ name, text: `“${typed}” is not a time. Examples: ${EXAMPLES}.` });
        return;
      }
      range[name] = found;
    }
    if (range.since && range.until && absolute(range.since) >= absolute(range.until)) {
      setProblem({ name: "until", text: "The end must be later than the start." });
      return;
    }
    close();
    go(changed({ ...range, before: "" }));
  };
  const invalid = (name: string) =>
    problem?.name === name ? { "aria-invalid": true, "aria-describedby": "time-problem" } : {};
  return (
    <form onSubmit={submit} onInput={() => setProblem(null)}>
      <label>
        From
        <input
          name="since"
          defaultValue={since}
          placeholder="2h, or 2026-11-27 14:00"
          spellcheck={false}
          {...invalid("since")}
        />
      </label>
      <label>
        To
        <input name="until" defaultValue={until} placeholder="now" spellcheck={false} {...invalid("until")} />
      </label>
      {problem && (
        <p id="time-problem" class="is-fail small" role="alert">
          {problem.text}
        </p>
      )}
      <button type="submit" class="primary">
        Apply
      </button>
    </form>
  );
}

const EXAMPLES = "2h, 1h30m, 14:30, 2026-11-27, 2026-11-27 14:00, 2026-11-27T14:00:00Z";
const ABSOLUTE = /^(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d+)?)?))?\s*(Z|[+-]\d\d:\d\d)?$/i;

/**
 * Return a time as RFC 3339, and a relative one as it is; null for any other text.
 *
 * A text without a zone is in the zone that the page shows.
 */
function normal(text: string): string | null {
  if (text === "" || text === "now") return "";
  if (relativeMs(text) !== null) return text;
  const day = /^\d\d?:\d\d(:\d\d)?$/.test(text) ? `${time(Date.now(), "date")} ${text.padStart(5, "0")}` : text;
  const [, date, hours = "00:00", offset] = ABSOLUTE.exec(day) ?? [];
  if (!date) return null;
  const found = new Date(`${date}T${hours}${offset ?? (zone.value === "local" ? "" : "Z")}`);
  return Number.isNaN(found.getTime()) ? null : found.toISOString();
}
