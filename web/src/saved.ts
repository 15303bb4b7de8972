/**
 * The responses of a page that was saved as a single HTML file.
 *
 * Such a file contains two elements that the server's page does not have:
 *
 * - `<script type="application/json" id="page">` with `{"query": "view=run&id=…", "title": …, "saved_at": …}`;
 * - `<script type="application/json" id="responses">` with an object from keys, as `keyOf` returns them, to the
 *   bodies of the responses. With the attribute `data-encoding="gzip"`, the element contains this JSON compressed
 *   with gzip, in Base64.
 *
 * In both, `<` is written as `\u003c`, so that no text can end the element.
 *
 * The style and the script of the page are compressed as well, in elements that `saved.js` reads.
 */

export type SavedPage = { query: string; title: string; saved_at: string };

function element(id: string): HTMLScriptElement | null {
  const found = document.getElementById(id);
  return found instanceof HTMLScriptElement && found.type === "application/json" ? found : null;
}

function readPage(): SavedPage | null {
  try {
    return JSON.parse(element("page")?.textContent ?? "null") as SavedPage | null;
  } catch {
    return null;
  }
}

export const savedPage = readPage();

async function readResponses(): Promise<Record<string, unknown>> {
  const found = element("responses");
  const text = found?.textContent ?? "{}";
  if (found?.dataset.encoding !== "gzip") return JSON.parse(text) as Record<string, unknown>;
  const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(stream).json()) as Record<string, unknown>;
}

let responses: Promise<Record<string, unknown>> | null = null;

/** Return the body of a response of a saved page; undefined if the page does not contain it. */
export async function savedResponse(key: string): Promise<unknown> {
  responses ??= readResponses();
  return (await responses)[key];
}

/** Return a text compressed with gzip, in Base64. */
export async function pack(content: string): Promise<string> {
  const stream = new Blob([content]).stream().pipeThrough(new CompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192)
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

/**
 * Return the key of a request in a saved page.
 *
 * The key is the path relative to the page, `api/run`, then `?` and the parameters, sorted by name, without
 * `snapshot`, and without parameters whose value is empty. Names and values are encoded as `encodeURIComponent`
 * does. In Python:
 *
 *     pairs = sorted((name, value) for name, value in parameters.items() if name != "snapshot" and value)
 *     query = "&".join(f"{quote(name, safe=SAFE)}={quote(value, safe=SAFE)}" for name, value in pairs)
 *     key = f"{path}?{query}" if query else path
 *
 * with `SAFE = "!'()*~"` and `urllib.parse.quote`.
 */
export function keyOf(path: string, parameters: Record<string, string>): string {
  const query = Object.entries(parameters)
    .filter(([name, value]) => name !== "snapshot" && value !== "")
    .sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0))
    .map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`)
    .join("&");
  return query ? `${path}?${query}` : path;
}
