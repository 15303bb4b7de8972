/** When the newest run started, for a time range that contains none. */

import type { JSX } from "preact";
import { Ago } from "../clock";
import { time, zoneName } from "../format";
import { changed, go } from "../router";
import { savedPage } from "../saved";
import { useStore } from "../store";
import { snapshot } from "../stream";

const HOUR_MS = 3_600_000;

export function NewestRun(): JSX.Element | null {
  const at = useStore(snapshot)?.last_at;
  if (!at || savedPage) return null;
  const since = new Date(Date.parse(at) - HOUR_MS).toISOString();
  return (
    <>
      <span>
        The newest run started at {time(at)} {zoneName()} (<Ago at={at} />).
      </span>
      <button
        type="button"
        onClick={() => go(changed({ since, until: "", select: "", before: "" }))}
      >
        Show the newest runs
      </button>
    </>
  );
}
