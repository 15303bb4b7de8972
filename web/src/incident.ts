/** The findings of the overview in one plain sentence. */

import type { Finding } from "./api";
import { shortTime, withTimes } from "./format";

/** Return the main problem, the affected runs and the onset, in one sentence without numbers. */
export function incident(findings: Finding[]): string {
  const [first] = findings;
  if (!first) return "Overview";
  const worst = findings.find((each) => each.cause !== null && each.level !== "info");
  if (worst) {
    // Findings about the same incident have the same onset.
    const same = findings.filter(
      (each) => each.cause !== null && each.since === worst.since && each.kind in EFFECTS,
    );
    const clauses = new Map<string, string[]>();
    for (const each of same) {
      const runs = `runs with ${withTimes(each.condition ?? "")}`;
      const effect = EFFECTS[each.kind]?.[worst.since ? 1 : 0] as string;
      clauses.set(runs, [...(clauses.get(runs) ?? []), effect]);
    }
    const text = [...clauses].map(([runs, effects]) => `${runs} ${effects.join(" and ")} more often`).join("; ");
    const stage = same.find((each) => each.stage !== null)?.stage;
    const where = stage ? `, mostly in ${stage}` : "";
    return `${worst.since ? `Since ${shortTime(worst.since)}, ${text}` : capitalized(text)}${where}.`;
  }
  if (first.kind === "none") return first.level === "ok" ? "Nothing unusual." : first.text;
  if (first.kind === "alert") return "An alert is firing.";
  const since = first.since ? `Since ${shortTime(first.since)}, ` : "";
  const rises = first.level === "bad" || first.since !== null;
  if (first.kind === "failures") return capitalized(`${since}${first.since ? "more runs have failed" : rises ? "more runs fail" : "some runs fail"}.`);
  if (first.kind === "durations") return capitalized(`${since}runs ${first.since ? "have been" : "are"} slower.`);
  return "Some runs were interrupted.";
}

/** The effect on the runs, now and since the onset. */
const EFFECTS: Partial<Record<Finding["kind"], [now: string, sinceOnset: string]>> = {
  failures: ["fail", "have failed"],
  durations: ["are slow", "have been slow"],
};

function capitalized(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
