/** The time range in the top bar. */

import type { JSX } from "preact";
import { shortTime, zoneName } from "../format";
import { changed, go, useParameters } from "../router";
import { savedPage } from "../saved";
import { zone } from "../settings";
import { useStore } from "../store";
import { PRESETS, relativeMs } from "../timerange";
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
  if (savedPage) return <span class="muted">{label}</span>;
  return (
    <Menu
      name={`Time range: ${label}`}
      title={`Times are in ${zoneName()}`}
      label={
        <>
          <span>{label}</span>
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
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const fields = new FormData(event.currentTarget as HTMLFormElement);
    close();
    go(changed({ since: normal(fields.get("since")), until: normal(fields.get("until")), before: "" }));
  };
  return (
    <form onSubmit={submit}>
      <label>
        From
        <input name="since" defaultValue={since} placeholder="2h, or 2026-11-27 14:00" spellcheck={false} />
      </label>
      <label>
        To
        <input name="until" defaultValue={until} placeholder="now" spellcheck={false} />
      </label>
      <button type="submit" class="primary">
        Apply
      </button>
    </form>
  );
}

/** Return a time as RFC 3339: a text without a zone is in the zone that the page shows. */
function normal(entry: FormDataEntryValue | null): string {
  const text = String(entry ?? "").trim();
  if (text === "" || text === "now" || relativeMs(text) !== null) return text === "now" ? "" : text;
  const zoned =
    /(Z|[+-]\d\d:?\d\d)$/.test(text) || zone.value === "local" ? text : `${text.replace(" ", "T")}Z`;
  const date = new Date(zoned);
  return Number.isNaN(date.getTime()) ? text : date.toISOString();
}
