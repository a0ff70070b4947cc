// Put together. Only when all has been drawn do the figures go that it takes the place of.
function start() {
  $("explore").hidden = !runs.some(run => run.points.length);
  $("choices").classList.toggle("sticky", alone); // those of several runs take much of a screen
  $("chips").append(...Object.keys(GROUPS).map(chips));
  $("pickers").append(show.node, axis.node);
  $("layer-pickers").append(...(alone ? [] : [layerRun.node]), layerArm.node, layerSeed.node);
  $("transfer-pickers").append(density.node);
  $("transfer-figure").hidden = !data.transfer.length;
  $("reset").onclick = () => {
    history.replaceState(null, "", "#");
    readAddress();
    update();
  };
  rounds.addEventListener("toggle", drawRounds);
  views.push(drawChart, drawRounds, filterPage, drawLayers, drawTransfer);
  readAddress();
  update();
  document.documentElement.classList.add("live");
  addEventListener("hashchange", () => {
    readAddress();
    update();
  });
  new ResizeObserver(() => chart.clientWidth === drawnFor || (tip.hide(), drawChart())).observe(chart);
}

try {
  start();
} catch (error) {
  $("explore").hidden = true;
  throw error;
}
