/** The share menu: copies of the view in several forms. */

import type { JSX } from "preact";
import { copy } from "../clipboard";
import { withRecords } from "../command";
import { Icon } from "../icons";
import { currentPage } from "../page";
import { parameters } from "../router";
import { saveAsHtml } from "../save";
import { savedPage } from "../saved";
import { frozen } from "../timerange";
import { type Item, Menu } from "./Menu";

function link(): string {
  const query = new URLSearchParams(frozen(parameters.value));
  return `${location.origin}${location.pathname}${query.size ? `?${query}` : ""}`;
}

export function Share(): JSX.Element {
  const items: Item[] = [
    {
      label: "Copy link",
      hint: "with absolute times",
      run: () => void copy(link(), "the link"),
      disabled: Boolean(savedPage),
    },
    {
      label: "Copy as CLI command",
      run: () => void copy(withRecords(currentPage().command ?? "stageflow runs"), "the command"),
    },
    {
      label: "Copy as SQL",
      run: () =>
        void copy(currentPage().sql ?? "SELECT * FROM runs ORDER BY started_at DESC LIMIT 100", "the query"),
    },
    {
      label: "Copy for an assistant",
      hint: "Markdown",
      run: () => void copy(assistantText(), "the Markdown"),
    },
    "line",
    {
      label: "Save as HTML file",
      hint: "works offline",
      run: () => void saveAsHtml(),
      disabled: Boolean(savedPage),
    },
  ];
  return (
    <Menu
      end
      name="Share"
      label={
        <>
          <Icon name="share" />
          <span class="medium-only">Share</span>
        </>
      }
      items={items}
    />
  );
}

function assistantText(): string {
  const page = currentPage();
  const body = page.markdown?.() ?? `# ${page.title}\n`;
  return page.command ? `${body}\nCommand: \`${withRecords(page.command)}\`\n` : body;
}
