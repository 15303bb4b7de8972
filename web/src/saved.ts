/**
 * The responses of a page that was saved as a single HTML file.
 *
 * Such a file contains two elements that the server's page does not have:
 *
 * - `<script type="application/json" id="page">` with `{"query": "view=run&id=…", "title": …, "saved_at": …}`;
 * - `<script type="application/json" id="responses">` with an object from keys, as `keyOf` returns them, to the
 *   bodies of the responses.
 *
 * In both, `<` is written as `\u003c`, so that no text can end the element.
 */

export type SavedPage = { query: string; title: string; saved_at: string };

function readJson<T>(id: string): T | null {
  const element = document.getElementById(id);
  if (!(element instanceof HTMLScriptElement) || element.type !== "application/json") return null;
  try {
    return JSON.parse(element.textContent ?? "") as T;
  } catch {
    return null;
  }
}

export const savedPage = readJson<SavedPage>("page");

const responses = new Map(Object.entries(readJson<Record<string, unknown>>("responses") ?? {}));

export function savedResponse(key: string): unknown {
  return responses.get(key);
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
