"use strict";
// The token comes in the address after "#token=" (browsers do not send that part) or is typed; it lives as long as the tab.
const REFRESH_MS = 3000;
const byId = (id) => document.getElementById(id);
const fromAddress = new URLSearchParams(location.hash.slice(1)).get("token");
if (fromAddress) {
  sessionStorage.setItem("token", fromAddress);
  history.replaceState(null, "", location.pathname);
}
let log = null;

async function call(path, options = {}) {
  const headers = { Authorization: "Bearer " + (sessionStorage.getItem("token") || "") };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) throw new Error("token");
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

function cell(row, text, className) {
  const td = row.insertCell();
  // Everything a guest may have written goes in as text.
  td.textContent = text;
  if (className) td.className = className;
  return td;
}

function show(vm) {
  const row = document.createElement("tr");
  const shape = vm.configuration || {};
  cell(row, vm.name || vm.id).title = vm.id;
  const status = document.createElement("span");
  status.className = "status " + vm.status;
  status.textContent = vm.status;
  cell(row, "").append(status);
  cell(row, vm.uptime || (vm.exited_at ? "ended " + vm.exited_at : ""));
  const app = document.createElement("code");
  app.textContent = vm.app_id.slice(0, 12) + "…";
  app.title = vm.app_id;
  cell(row, "").append(app);
  cell(row, shape.image || "");
  cell(row, shape.vcpu ? shape.vcpu + ", " + shape.memory + " MiB" : "");
  const boot = cell(row, vm.shutdown_progress || vm.boot_progress);
  if (vm.boot_error) {
    const error = document.createElement("div");
    error.className = "error";
    error.textContent = vm.boot_error;
    boot.append(error);
  }
  const logs = cell(row, "");
  for (const channel of ["serial", "stderr"]) {
    const button = document.createElement("button");
    button.textContent = channel;
    button.onclick = () => { log = { id: vm.id, channel, name: vm.name || vm.id }; refreshLog(); };
    logs.append(button);
  }
  return row;
}

async function refreshLog() {
  byId("log").hidden = !log;
  if (!log) return;
  const query = new URLSearchParams({ id: log.id, ch: log.channel, lines: "500" });
  const text = await (await call("/logs?" + query)).text();
  byId("log-title").textContent = log.name + ": " + log.channel;
  const pre = byId("log-text");
  const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 20;
  pre.textContent = text;
  if (atEnd) pre.scrollTop = pre.scrollHeight;
}

async function refresh() {
  try {
    const [status, meta] = await Promise.all(["Status", "GetMeta"].map(async (method) => (await call("/prpc/" + method)).json()));
    byId("vms").replaceChildren(...status.vms.map(show));
    byId("empty").hidden = status.vms.length > 0;
    byId("node").textContent = (meta.accelerator ? meta.accelerator.toUpperCase() + ": " : "") + meta.accelerator_reason;
    byId("message").textContent = "";
    byId("login").hidden = true;
    document.querySelector("main").hidden = false;
    await refreshLog();
  } catch (error) {
    const needsToken = error.message === "token";
    byId("login").hidden = !needsToken;
    byId("message").textContent = needsToken ? "Enter the access token of this node." : "The VMM does not answer: " + error.message;
    if (needsToken) document.querySelector("main").hidden = true;
  }
}

byId("login").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  refresh();
};
byId("log-close").onclick = () => { log = null; refreshLog(); };
refresh();
setInterval(refresh, REFRESH_MS);
