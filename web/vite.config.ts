import { defineConfig } from "vite";

// Two builds, because each entry becomes one classic script: the page is also saved as a single HTML file with
// the script inlined, and a shared worker has to be a file of its own.
export default defineConfig(({ mode }) => {
  const worker = mode === "worker";
  return {
    base: "./",
    publicDir: worker ? false : "public",
    oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
    build: {
      target: "es2022",
      emptyOutDir: !worker,
      assetsInlineLimit: 0,
      cssCodeSplit: false,
      modulePreload: false,
      rolldownOptions: {
        input: worker ? "src/worker.ts" : "src/main.tsx",
        output: {
          format: "iife",
          entryFileNames: worker ? "worker.js" : "app.js",
          assetFileNames: "app[extname]",
        },
      },
    },
  };
});
