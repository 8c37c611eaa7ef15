// Drives a stand-in for E2B with the official JavaScript SDK: PASS or FAIL a case, exit 1 on a failure.
// usage: node e2b_check.mjs http://127.0.0.1:PORT
import assert from "node:assert/strict";
import * as e2b from "e2b";

const url = process.argv[2];
const to = { apiUrl: url, sandboxUrl: url, apiKey: "e2b_" + "0".repeat(40) };
const { Sandbox } = e2b;

let failed = 0;
let passed = 0;
async function check(name, body) {
  try {
    await body();
    passed += 1;
    console.log(`PASS ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error?.stack ?? error}`);
  }
}

let box;
await check("create", async () => {
  box = await Sandbox.create({ ...to, timeoutMs: 120_000, metadata: { run: "js" }, envs: { FOO: "bar" } });
  assert.match(box.sandboxId, /^i[0-9a-z]{20}$/);
});
await check("run exits 0", async () => {
  const result = await box.commands.run("echo hello $FOO; echo oops >&2");
  assert.deepEqual([result.stdout, result.stderr, result.exitCode], ["hello bar\n", "oops\n", 0]);
});
await check("run exits 3", async () => {
  await assert.rejects(box.commands.run("echo out; exit 3"), (error) => {
    assert.ok(error instanceof e2b.CommandExitError, error);
    assert.deepEqual([error.exitCode, error.stdout], [3, "out\n"]);
    return true;
  });
});
await check("output comes as it is made", async () => {
  const times = [];
  await box.commands.run("for i in 1 2 3; do echo $i; sleep 0.1; done", { onStdout: () => times.push(performance.now()) });
  assert.ok(times.at(-1) - times[0] > 100, times.join());
});
await check("a command's timeout ends it", async () => {
  await assert.rejects(box.commands.run("sleep 20", { timeoutMs: 700 }), e2b.TimeoutError);
});
await check("kill a command", async () => {
  const handle = await box.commands.run("sleep 30", { background: true });
  assert.equal(await handle.kill(), true);
  await assert.rejects(handle.wait(), (error) => error.exitCode === -1);
  assert.equal(await box.commands.kill(handle.pid), false);
});
await check("write and read text", async () => {
  const info = await box.files.write("/home/user/dir/a.txt", "h\u00e9llo");
  assert.equal(info.path, "/home/user/dir/a.txt");
  assert.equal(await box.files.read("dir/a.txt"), "h\u00e9llo");
});
await check("write and read bytes", async () => {
  const bytes = Uint8Array.from({ length: 100_000 }, (_, i) => i % 256);
  await box.files.write("b.bin", bytes.buffer);
  assert.deepEqual(await box.files.read("b.bin", { format: "bytes" }), bytes);
});
await check("list, rename, remove", async () => {
  const names = (await box.files.list("/home/user/dir")).map((entry) => entry.name);
  assert.deepEqual(names, ["a.txt"]);
  assert.equal((await box.files.rename("dir/a.txt", "dir/b.txt")).path, "/home/user/dir/b.txt");
  await box.files.remove("dir");
  assert.equal(await box.files.exists("dir"), false);
});
await check("set timeout", async () => {
  await box.setTimeout(300_000);
  const info = await box.getInfo();
  const left = info.endAt.getTime() - Date.now();
  assert.ok(left > 290_000 && left < 301_000, String(left));
  assert.deepEqual(info.metadata, { run: "js" });
});
await check("connect and list", async () => {
  const other = await Sandbox.connect(box.sandboxId, to);
  assert.equal((await other.commands.run("echo same")).stdout, "same\n");
  const page = await Sandbox.list({ ...to, query: { metadata: { run: "js" } } }).nextItems();
  assert.deepEqual(page.map((entry) => entry.sandboxId), [box.sandboxId]);
});
await check("is running", async () => {
  assert.equal(await box.isRunning(), true);
});
await check("kill, and what follows", async () => {
  assert.equal(await box.kill(), true);
  assert.equal(await box.isRunning(), false);
  await assert.rejects(box.commands.run("true"), e2b.SandboxNotFoundError);
  await assert.rejects(box.getInfo(), e2b.SandboxNotFoundError);
});
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
