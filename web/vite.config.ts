import { defineConfig, type Plugin } from "vite";

/** Lists the packages whose code the page contains in `packages.txt`, for the notices about their licenses. */
const packages: Plugin = {
  name: "packages",
  generateBundle(_, bundle) {
    const chunks = Object.values(bundle).flatMap((file) => (file.type === "chunk" ? Object.keys(file.modules) : []));
    const names = chunks.map((id) => id.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean);
    this.emitFile({ type: "asset", fileName: "packages.txt", source: `${[...new Set(names)].sort().join("\n")}\n` });
  },
};

// Two builds, because each entry becomes one classic script: the page is also saved as a single HTML file with
// the script inlined, and a shared worker has to be a file of its own.
export default defineConfig(({ mode }) => {
  const worker = mode === "worker";
  return {
    base: "./",
    plugins: worker ? [] : [packages],
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
