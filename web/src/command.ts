/** Commands of the command line that show the same as a view. */

import type { Parameters } from "./router";
import { snapshot } from "./stream";

export function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Return a command with the options of the filter and the time range. */
export function command(name: string, parameters: Parameters, ...rest: string[]): string {
  const { where, since, until } = parameters;
  const parts = ["stageflow", name, ...rest.map(quoted)];
  if (where) parts.push("--where", quoted(where));
  if (since) parts.push("--since", quoted(since));
  if (until) parts.push("--until", quoted(until));
  return parts.join(" ");
}

/** Add the options with which commands read the records of this page. */
export function withRecords(commands: string | string[]): string {
  const options = snapshot.value?.options ?? "";
  return [commands]
    .flat()
    .map((each) => (options === "" || each.includes(options) ? each : `${each} ${options}`))
    .join(" && ");
}
