/** The entry of the page. */

import { render } from "preact";
import { App } from "./App";
import { start } from "./stream";
import "./style/index.css";

function main(): void {
  const root = document.getElementById("app");
  if (!root) return;
  start();
  render(<App />, root);
}

// A saved page may still be loading when its script is unpacked.
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", main);
else main();
