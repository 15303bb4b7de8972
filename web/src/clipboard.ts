import { announce } from "./parts/Toast";

/** Copy a text. Without a secure context, as on a remote host without TLS, browsers only offer the old way. */
export async function copy(text: string, what: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) {
      announce("The browser did not allow copying");
      return;
    }
  }
  announce(`Copied ${what}`);
}
