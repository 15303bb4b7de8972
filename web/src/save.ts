/** Saves the view that is open as a single HTML file, which shows it without a server. */

import { announce } from "./parts/Toast";
import { currentPage } from "./page";
import { shown } from "./query";
import { parameters } from "./router";
import { pack } from "./saved";
import { snapshot } from "./stream";

/** JSON that contains no `<`, so that no text in it can end the script element. */
function json(value: unknown): string {
  return JSON.stringify(value).replaceAll("<", "\\u003c");
}

async function asset(name: string): Promise<string> {
  const response = await fetch(name);
  if (!response.ok) throw new Error(name);
  return response.text();
}

export async function saveAsHtml(): Promise<void> {
  try {
    const [style, script, start] = await Promise.all(["app.css", "app.js", "saved.js"].map(asset));
    const text = await assemble(style ?? "", script ?? "", start ?? "");
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(new Blob([text], { type: "text/html" }));
    anchor.download = `stageflow-${currentPage()
      .title.replace(/[^\w.-]+/g, "-")
      .slice(0, 60)}.html`;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
    announce("Saved as HTML file");
  } catch {
    announce("The file could not be saved, because the server does not respond");
  }
}

async function assemble(style: string, script: string, start: string): Promise<string> {
  const query = new URLSearchParams(parameters.value).toString();
  const title = currentPage().title;
  const page = { query, title, saved_at: new Date().toISOString() };
  const needed = [...shown.values()].filter(({ key }) => !key.startsWith("api/complete"));
  const responses = Object.fromEntries(needed.map(({ key, body }) => [key, body]));
  if (snapshot.value) responses["api/snapshot"] = snapshot.value;
  return [
    "<!doctype html>",
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="color-scheme" content="light dark">',
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">`,
    `<title>${escaped(title)} · stageflow</title>`,
    '</head><body><div id="app"></div>',
    `<script type="application/json" id="page">${json(page)}</script>`,
    `<script type="application/json" id="responses" data-encoding="gzip">${await pack(JSON.stringify(responses))}</script>`,
    `<script type="text/plain" id="packed-style">${await pack(style)}</script>`,
    `<script type="text/plain" id="packed-script">${await pack(script)}</script>`,
    `<script>${start}</script>`,
    "</body></html>",
  ].join("\n");
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
}
