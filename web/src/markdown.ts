/** Compact Markdown, to paste into a ticket or a chat. */

function cell(text: string): string {
  return text.replace(/\s+/g, " ").replaceAll("|", "\\|").slice(0, 200);
}

export function table(head: string[], rows: string[][]): string {
  if (rows.length === 0) return "(no rows)";
  const line = (cells: string[]) => `| ${cells.map(cell).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}

/** Return the scope of a view as list items: the filter and the time range. */
export function scope(parameters: Record<string, string>): string {
  const items = [
    parameters.where && `- filter: \`${parameters.where}\``,
    parameters.select && `- selection: \`${parameters.select}\``,
    (parameters.since || parameters.until) &&
      `- time: ${parameters.since || "start"} to ${parameters.until || "now"}`,
  ];
  return items.filter(Boolean).join("\n");
}

export function section(...parts: (string | false | null | undefined)[]): string {
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}
