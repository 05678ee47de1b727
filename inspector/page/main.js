// Puts the page together. If something goes wrong the reader is told: half a page is no page.

function start() {
  const data = JSON.parse(byId("graphwright-data").textContent);
  const state = loadState(data);
  renderTop(data);
  renderSections([
    ["passes", "Passes"],
    ["graph", "Graph"],
    ["cost", data.gpu ? "Launches" : "Cost"],
    ["memory", "Memory"],
    ["evidence", "Evidence"],
  ]);
  renderPasses(data);
  renderGraph(data, state);
  if (data.gpu) renderLaunches(data);
  else if (hasFacts(data)) renderCost(data, state);
  renderMemory(data);
  renderEvidence(data);
}

window.addEventListener("error", (event) => {
  const problem = byId("problem");
  problem.hidden = false;
  problem.textContent =
    `This page could not be drawn: ${event.message}. The text views of ` +
    `\`graphwright inspect\` hold the same facts.`;
  document.documentElement.dataset.state = "failed";
});
start();
document.documentElement.dataset.state = document.documentElement.dataset.state || "ready";
