// Builds ../assets out of src and the libraries of package-lock.json, and writes
// ../SHA256SUMS, by which a test without npm knows that sources and assets
// belong together. With --check it changes nothing: it builds into a temporary
// directory, compares byte for byte, and runs the tests of test/.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, relative } from "node:path";
import { build } from "esbuild";

const ui = import.meta.dirname;
const home = join(ui, "..");
const browsers = ["chrome123", "firefox128", "safari17.5"]; // 2024: the first with light-dark() in CSS

/** assets returns what is to be served, by file name. */
async function assets() {
  const { outputFiles, metafile } = await build({
    absWorkingDir: ui, entryPoints: { app: "src/main.tsx" }, entryNames: "[name]-[hash]", outdir: "out", write: false, metafile: true,
    bundle: true, minify: true, format: "esm", target: browsers, charset: "utf8", legalComments: "none",
    jsx: "automatic", jsxImportSource: "preact", define: { "process.env.NODE_ENV": '"production"' }, logLevel: "warning",
  });
  const files = new Map(outputFiles.map((f) => [basename(f.path), Buffer.from(f.contents)]));
  const named = (ending) => [...files.keys()].find((name) => name.endsWith(ending));
  const page = readFileSync(join(ui, "src/index.html"), "utf8").replace("app.js", named(".js")).replace("app.css", named(".css"));
  files.set("index.html", Buffer.from(page));
  files.set("icon.svg", readFileSync(join(ui, "src/icon.svg")));
  files.set("licences.txt", Buffer.from(licences(Object.keys(metafile.inputs))));
  return files;
}

/** licences returns the licence of every library of which the bundle holds something. */
function licences(inputs) {
  const names = [...new Set(inputs.map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]).filter(Boolean))].sort();
  return names.map((name) => {
    const { version } = JSON.parse(readFileSync(join(ui, "node_modules", name, "package.json"), "utf8"));
    return `${name} ${version}\n\n${readFileSync(join(ui, "node_modules", name, "LICENSE"), "utf8").trim()}\n`;
  }).join(`\n${"-".repeat(72)}\n\n`);
}

/** sums returns the lines of SHA256SUMS, in the form of sha256sum. */
function sums(built) {
  const line = (path, data) => `${createHash("sha256").update(data).digest("hex")}  ${path}\n`;
  const sources = readdirSync(ui, { recursive: true, withFileTypes: true })
    .filter((e) => e.isFile()).map((e) => relative(home, join(e.parentPath, e.name)).replaceAll("\\", "/"))
    .filter((path) => !path.startsWith("ui/node_modules/")).sort();
  return [...sources.map((path) => line(path, readFileSync(join(home, path)))), ...[...built].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, data]) => line(`assets/${name}`, data))].join("");
}

/** test bundles test/*.ts, because Node reads no TypeScript of its own before version 22, and runs them. */
async function test() {
  const scratch = mkdtempSync(join(tmpdir(), "difylb-ui-"));
  try {
    const entryPoints = readdirSync(join(ui, "test")).filter((name) => name.endsWith(".test.ts")).map((name) => join(ui, "test", name));
    await build({ entryPoints, outdir: scratch, outExtension: { ".js": ".mjs" }, bundle: true, format: "esm", platform: "node", target: "node20", logLevel: "warning" });
    return spawnSync(process.execPath, ["--test", "--test-reporter=spec", ...readdirSync(scratch).map((name) => join(scratch, name))], { stdio: "inherit" }).status === 0;
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

const built = await assets();
const list = sums(built);
if (process.argv.includes("--check")) {
  const there = readdirSync(join(home, "assets"));
  const faults = [
    ...there.filter((name) => !built.has(name)).map((name) => `assets/${name} is not built any more`),
    ...[...built].filter(([name, data]) => !there.includes(name) || !readFileSync(join(home, "assets", name)).equals(data)).map(([name]) => `assets/${name} is not what the sources give`),
    ...(readFileSync(join(home, "SHA256SUMS"), "utf8") === list ? [] : ["SHA256SUMS is old"]),
  ];
  for (const fault of faults) console.error(fault);
  if (faults.length > 0) console.error("run `make dashboard`, and commit what it changes");
  process.exitCode = (await test()) && faults.length === 0 ? 0 : 1;
} else {
  rmSync(join(home, "assets"), { recursive: true, force: true });
  mkdirSync(join(home, "assets"));
  for (const [name, data] of built) writeFileSync(join(home, "assets", name), data);
  writeFileSync(join(home, "SHA256SUMS"), list);
}
